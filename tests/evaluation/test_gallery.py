"""The gallery: which queries, which pictures, in which order, and what the page says."""

import base64
import io
import re

import numpy as np
from PIL import Image

from clip_italian.evaluation import gallery
from clip_italian.evaluation.examples import choose_examples
from clip_italian.evaluation.plots import png

TARGETS = np.arange(8)


def embeddings():
    """Eight pictures e0..e7; captions 0-3 find theirs first, 4-7 do not."""
    image_embeds = np.eye(8, dtype=np.float32)
    text_embeds = np.eye(8, dtype=np.float32)
    text_embeds[4] = [0.9, 0.8, 0.7, 0.6, 0.1, 0.5, 0.4, 0.3]  # its own is last: rank 8
    text_embeds[5] = [0, 0, 0, 0, 0, 0.5, 0.9, 0]  # rank 2
    text_embeds[6] = [0, 0, 0, 0, 0, 0, 0.2, 0.2]  # tied with picture 7: rank 2
    text_embeds[7] = [0, 0.3, 0.2, 0, 0, 0, 0, 0.1]  # rank 3
    return image_embeds, text_embeds


def choose(**options):
    captions = [f"didascalia {i}" for i in range(8)]
    return choose_examples(*embeddings(), TARGETS, captions, **options)


def thumbnails(indices):
    """Picture i is a flat grey of 30 * i; the even ones lie, the odd ones stand."""
    return [np.full((60, 40, 3) if i % 2 else (40, 60, 3), 30 * i, np.uint8) for i in indices]


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_queries_are_evenly_spaced_half_right_half_wrong():
    chosen = choose(queries=4)
    # Of the right ones 0 1 2 3: places 1 and 3 of four; of the wrong ones 4 5 6 7 likewise.
    assert [one.right for one in chosen.examples] == [1, 3, 5, 7]
    assert [one.rank for one in chosen.examples] == [1, 1, 2, 3]
    assert chosen.rule == (
        "2 of the 4 captions whose picture came first, then 2 of the 4 whose picture did not, each "
        "evenly spaced in the order of the evaluation set, not picked by hand. First place: 50.0% "
        "of 8 captions, among 8 pictures."
    )


def test_when_one_kind_runs_out_the_other_fills_up():
    image_embeds, text_embeds = embeddings()
    captions = [f"didascalia {i}" for i in range(5)]
    chosen = choose_examples(image_embeds, text_embeds[:5], TARGETS[:5], captions, queries=4)
    assert [one.rank for one in chosen.examples] == [1, 1, 1, 8]
    assert len(choose(queries=12).examples) == 8


def test_pictures_are_ordered_by_score_and_the_right_one_stands_at_its_rank():
    by_image = {one.right: one for one in choose(queries=8).examples}
    far = by_image[4]
    assert far.query == "didascalia 4"
    assert (far.rank, far.found) == (8, (0, 1, 2, 3, 5))
    np.testing.assert_allclose(far.scores, [0.9, 0.8, 0.7, 0.6, 0.5], rtol=1e-6)
    np.testing.assert_allclose(far.right_score, 0.1, rtol=1e-6)
    assert by_image[5].found[:2] == (6, 5)
    assert by_image[6].found[:2] == (7, 6)  # the tie is shown as it was counted
    assert by_image[7].found[:3] == (1, 2, 7)


def test_page_marks_the_right_picture_and_holds_all_pictures():
    chosen = choose(queries=8)
    page = gallery.gallery_html(chosen, thumbnails)
    sections = page.split("<section>")[1:]
    assert len(sections) == 8
    for example, section in zip(chosen.examples, sections, strict=True):
        kinds = re.findall(r'<figure class="([a-z ]+)">', section)
        uris = re.findall(r'<img src="(data:image/jpeg;base64,[^"]+)"', section)
        shown = [*example.found, *([] if example.rank <= 5 else [example.right])]
        assert [round(decoded(uri).mean() / 30) for uri in uris] == shown
        mark = "right" if example.rank <= 5 else "right apart"
        assert kinds == [mark if image == example.right else "wrong" for image in shown]
        assert section.count("✓") == section.count(", the right one") == 1
        assert section.count("alt=") == len(shown)
    assert "right picture at rank 8" in page
    assert "✓ 8. · 0.100" in page
    assert chosen.rule in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # needs no other file


def test_page_escapes_captions_and_names_their_language():
    image_embeds, text_embeds = embeddings()
    captions = ['l\'<b>età</b> & "più"'] * 8
    chosen = choose_examples(image_embeds, text_embeds, TARGETS, captions)
    page = gallery.gallery_html(chosen, thumbnails, title="a < b", language="it")
    assert '<h2 lang="it">l&#x27;&lt;b&gt;età&lt;/b&gt; &amp; &quot;più&quot;</h2>' in page
    assert "<h1>a &lt; b</h1>" in page
    assert '<meta charset="utf-8">' in page


def test_pictures_are_made_small_but_never_larger():
    chosen = choose(queries=1)
    big = gallery.gallery_html(chosen, lambda ids: [np.zeros((400, 800, 3), np.uint8)] * len(ids))
    small = gallery.gallery_html(chosen, lambda ids: [np.zeros((32, 32, 3), np.uint8)] * len(ids))
    find = r"data:image/jpeg;base64,[^\"]+"
    assert decoded(re.findall(find, big)[0]).shape == (96, 192, 3)
    assert decoded(re.findall(find, small)[0]).shape == (32, 32, 3)


def test_figure_frames_the_right_picture_only():
    chosen = choose(queries=8)
    figure = gallery.gallery_figure(chosen, thumbnails, title="Prova")
    (axes,) = figure.axes
    shown, frames = axes.get_images(), axes.patches
    assert len(shown) == len(frames) == 8 * 5 + 1  # one right picture is not among the five
    framed = [
        image for image, frame in zip(shown, frames, strict=True) if frame.get_linewidth() > 1
    ]
    assert [int(image.get_array().mean() / 30) for image in framed] == list(TARGETS)
    for image, frame in zip(shown, frames, strict=True):
        left, right, bottom, top = image.get_extent()
        assert (left, top) == frame.get_xy()
        high, wide = image.get_array().shape[:2]
        np.testing.assert_allclose((right - left) / (bottom - top), wide / high)
    texts = [text.get_text() for text in axes.texts]
    assert sum(text.startswith("✓ ") for text in texts) == 8
    assert "✓ 8. · 0.100" in texts
    assert texts[0].startswith("Prova\n4 of the 4 captions")
    assert Image.open(io.BytesIO(png(figure))).format == "PNG"
