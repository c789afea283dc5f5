"""The tabs that begin with a text: search, and two models side by side."""

import time
from collections.abc import Callable

import gradio as gr

from clip_italian.demo import markup, queries
from clip_italian.demo.answers import MOST_RESULTS, NEAR_DUPLICATE, Answers, Found
from clip_italian.demo.page import PRIVATE, Page, api, buttons, examples, remarks_field, tried

SHOWN = 12  # pictures at first


def text_to_image(page: Page) -> None:
    """A text, and the pictures found for it; a press on one finds pictures like it."""
    words, answers = page.words, page.answers
    query = gr.Textbox(
        label=words.query,
        placeholder=words.query_hint.format(example=page.queries[0]),
        max_length=queries.MOST_CHARACTERS,
        autofocus=True,
    )
    with gr.Row():
        negative = gr.Textbox(
            label=words.negative,
            placeholder=words.negative_hint,
            max_length=queries.MOST_CHARACTERS,
        )
        count = gr.Slider(1, MOST_RESULTS, SHOWN, step=1, label=words.how_many)
    hint = words.fold_hint.format(threshold=words.number(NEAR_DUPLICATE, 2))
    fold = gr.Checkbox(True, label=words.fold, info=hint)
    button = gr.Button(words.search, variant="primary")
    remarks, found = remarks_field(), buttons()
    examples(page, query)

    def search(text: str, without: str, k: float | None, folding: bool) -> tuple[str, str]:
        def answer() -> tuple[Found, list[str]]:
            asked, lines = page.check(text)
            start = time.perf_counter()
            found = answers.by_text(asked, queries.clean(without), _count(k), fold=bool(folding))
            return found, [_told(words.found, found, start, query=asked), *lines]

        return _results(answer, page)

    def like(k: float | None, folding: bool, event: gr.EventData) -> tuple[str, str]:
        def answer() -> tuple[Found, list[str]]:
            start = time.perf_counter()
            row = int(event.row)
            found = answers.by_row(row, _count(k), fold=bool(folding))
            name = markup.caption(answers.index, row)
            return found, [_told(words.found_like, found, start, caption=name)]

        return _results(answer, page)

    asked = [query, negative, count, fold]
    button.click(search, asked, [remarks, found], **api("search", words))
    query.submit(search, asked, [remarks, found], **PRIVATE)
    negative.submit(search, asked, [remarks, found], **PRIVATE)
    found.pick(like, [count, fold], [remarks, found], **PRIVATE)


def compare(page: Page, other: Answers) -> None:
    """One text, and what each of two models finds for it."""
    words = page.words
    query = gr.Textbox(label=words.query, max_length=queries.MOST_CHARACTERS)
    button = gr.Button(words.compare_search, variant="primary")
    remarks = remarks_field()
    both = [page.answers, other]
    found = []
    with gr.Row():
        for answers in both:
            with gr.Column():
                gr.Markdown(f"### {answers.model.name}")
                found.append(gr.HTML())
    examples(page, query)

    def search(text: str) -> tuple[str, str, str]:
        def answer() -> tuple[list[str], list[str]]:
            asked, lines = page.check(text)
            pictures = [one.by_text(asked, "", SHOWN, fold=False) for one in both]
            names = [
                {one.index.keys[row] for row in few.rows}
                for one, few in zip(both, pictures, strict=True)
            ]
            common = words.in_common.format(common=len(names[0] & names[1]), count=len(names[0]))
            shown = [
                markup.results(few, one.index, words, clickable=False)
                for one, few in zip(both, pictures, strict=True)
            ]
            return shown, [common, *lines]

        shown, said = tried(answer, page)
        one, another = shown or ("", "")
        return said, one, another

    button.click(search, query, [remarks, *found], **api("compare", words))
    query.submit(search, query, [remarks, *found], **PRIVATE)


def _results(answer: Callable[[], tuple[Found, list[str]]], page: Page) -> tuple[str, str]:
    found, said = tried(answer, page)
    index = page.answers.index
    return said, "" if found is None else markup.results(found, index, page.words)


def _count(k: float | None) -> int:
    """What the slider says; clients may leave it out."""
    return SHOWN if k is None else int(k)


def _told(sentence: str, found: Found, start: float, **about: str) -> str:
    milliseconds = f"{1000 * (time.perf_counter() - start):.0f}"
    return sentence.format(count=len(found.rows), milliseconds=milliseconds, **about)
