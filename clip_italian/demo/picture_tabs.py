"""The tabs that begin with a picture: which text fits it, and where a phrase is in it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from PIL import Image

from clip_italian.demo import markup, queries, where
from clip_italian.demo.answers import Answers
from clip_italian.demo.page import PRIVATE, Page, api, picture_fields, tried
from clip_italian.demo.pictures import Picture
from clip_italian.demo.queries import QueryError
from clip_italian.demo.words import Words
from clip_italian.evaluation.languages import naming

MOST_CANDIDATES = 50
_BARS = 10


class Seen(NamedTuple):
    """A picture, its heat (float32 [rows, columns]), and what the map is called: a visitor's.

    Kept as small as can be, for there may be many visitors.
    """

    picture: Picture
    heat: np.ndarray
    name: str


def image_to_text(page: Page) -> None:
    """A picture and candidate texts, and how probable each is."""
    words, answers = page.words, page.answers
    upload, row, remarks = picture_fields(page)
    how = gr.Radio(
        [(words.typed, "typed"), (words.pack, "pack")], value="typed", label=words.candidates
    )
    lines = "\n".join(page.candidates)
    texts = gr.Textbox(lines, lines=4, label=words.candidates, info=words.typed_hint)
    around = gr.Textbox("{}", label=words.template, info=words.template_hint)
    templates = naming.open_pack("it").templates
    form = gr.Dropdown(list(templates), value=templates[0], label=words.template, visible=False)
    button = gr.Button(words.classify, variant="primary")
    bars = gr.Label(num_top_classes=_BARS, label=words.probabilities, visible=False)
    how.change(
        lambda kind: [gr.update(visible=kind == "typed")] * 2 + [gr.update(visible=kind == "pack")],
        how,
        [texts, around, form],
        **PRIVATE,
    )

    def classify(
        path: str | None, chosen: int | None, kind: str, lines: str, phrase: str, template: str
    ) -> tuple[str, Any]:
        def answer() -> tuple[dict[str, float], list[str]]:
            picture = page.picture(path, chosen)
            if kind == "pack":
                names, values = answers.pack_probabilities(picture, template)
            else:
                names = _candidates(lines, words)
                prompts = _prompts(names, phrase, words)
                values = answers.probabilities(picture, prompts)
            order = np.argsort(-values, kind="stable")[:_BARS]
            return {names[i]: float(values[i]) for i in order}, [_scale(answers, words)]

        found, said = tried(answer, page)
        return said, gr.update(value=found, visible=found is not None)

    fields = [upload, row, how, texts, around, form]
    button.click(classify, fields, [remarks, bars], **api("classify", words))


def localise(page: Page) -> None:
    """A picture and a phrase, and where in the picture the model finds it."""
    words = page.words
    upload, row, remarks = picture_fields(page)
    phrase = gr.Textbox(
        label=words.phrase,
        placeholder=words.phrase_hint.format(example=page.queries[0]),
        max_length=queries.MOST_CHARACTERS,
    )
    method = gr.Radio(
        [(words.tokens, "tokens"), (words.occlusion, "occlusion")],
        value="tokens",
        label=words.method,
    )
    opacity = gr.Slider(0, 1, 0.6, step=0.05, label=words.opacity)
    button = gr.Button(words.locate, variant="primary")
    seen = gr.HTML()
    scale = gr.HTML(markup.legend(words, where.COLORS), visible=False)
    heat = gr.State(None, time_to_live=3600)  # the picture and its map, for other opacities

    def locate(
        path: str | None, chosen: int | None, text: str, how: str, opaque: float
    ) -> tuple[str, Any, Any, Any]:
        found, said = tried(lambda: located(page, page.picture(path, chosen), text, how), page)
        there = gr.update(visible=found is not None)
        return said, blend(found, opaque), there, found

    def blend(found: Seen | None, opaque: float) -> str:
        if found is None:
            return ""
        pixels = np.asarray(found.picture.open())
        whole = where.on_whole_picture(found.heat, *pixels.shape[:2])
        blended = where.overlay(pixels, whole, min(max(float(opaque), 0.0), 1.0))
        return markup.picture(Image.fromarray(blended), found.name)

    fields = [upload, row, phrase, method, opacity]
    button.click(locate, fields, [remarks, seen, scale, heat], **api("locate", words))
    phrase.submit(locate, fields, [remarks, seen, scale, heat], **PRIVATE)
    opacity.release(blend, [heat, opacity], seen, show_progress="hidden", **PRIVATE)


def located(page: Page, picture: Picture, text: str, how: str) -> tuple[Seen, list[str]]:
    """Where in a picture a text is, and remarks. Raises `QueryError`."""
    words = page.words
    asked, lines = page.check(text)
    heat = _heat(page.answers, picture, asked, how)
    flat = [words.flat] if np.ptp(heat) < 1e-6 else []
    told = words.heat_map_of.format(phrase=asked)
    return Seen(picture, heat, told), [told, *flat, *lines]


def _candidates(lines: str, words: Words) -> list[str]:
    names = list(dict.fromkeys(filter(None, map(queries.clean, (lines or "").splitlines()))))
    if len(names) < 2:
        raise QueryError(words.few_candidates)
    if len(names) > MOST_CANDIDATES:
        raise QueryError(words.many_candidates.format(most=MOST_CANDIDATES, count=len(names)))
    return names


def _prompts(names: Sequence[str], phrase: str, words: Words) -> list[str]:
    around = queries.clean(phrase)
    before, mark, after = around.partition("{}")
    if not mark or set("{}") & set(before + after):
        raise QueryError(words.bad_template)
    return [f"{before}{name}{after}" for name in names]


def _scale(answers: Answers, words: Words) -> str:
    scale, bias = words.number(answers.encoder.logit_scale, 2), answers.encoder.logit_bias
    if bias is None:
        return words.scale.format(scale=scale)
    return words.sigmoid_scale.format(scale=scale, bias=words.number(bias, 2))


def _heat(answers: Answers, picture: Picture, phrase: str, how: str) -> np.ndarray:
    pixels, text = answers.pixels(picture), answers.text_embeds(phrase)
    if how == "occlusion":
        return where.occlusion(answers.encoder.encode_pixels, pixels, text)
    return where.patch_shares(answers.encoder.patch_embeds(pixels[None])[0], text)
