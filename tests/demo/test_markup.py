"""HTML of results: what strangers have written stays text."""

import html
import re

import numpy as np
import pytest

from clip_italian.demo import markup
from clip_italian.demo.answers import Found
from clip_italian.demo.words import ENGLISH, ITALIAN, LANGUAGES

HOSTILE = "<img src=x onerror=alert(1)>\"'{{constructor}}${alert(2)}`\\"


class OnePicture:
    keys = ("a.jpg", "b.jpg", "c.jpg")
    captions = ([HOSTILE], [], ["x" * 500])

    def thumbnail(self, row):
        return b"\xff\xd8" + bytes([row])


def test_captions_and_remarks_are_escaped():
    found = Found(np.array([0]), np.array([0.5], np.float32), [()])
    pages = [
        markup.results(found, OnePicture(), ITALIAN),
        markup.choices([0], OnePicture(), ITALIAN),
        markup.remarks([HOSTILE]),
        markup.remarks([HOSTILE], wrong=True),
    ]
    for page in pages:
        assert "<img src=x" not in page
        # Nothing is left that gradio's own templates would work on.
        assert not re.search(r"[{}$`\\]", page)
        assert HOSTILE in html.unescape(page)


def test_results_are_buttons_with_names_and_rows():
    found = Found(np.array([1, 2]), np.array([0.5, 0.25], np.float32), [(0, 2), ()])
    page = html.unescape(markup.results(found, OnePicture(), ENGLISH))
    assert re.findall(r'data-row="(\d)"', page) == ["1", "2"]
    assert 'aria-label="Search for pictures like this one: b.jpg"' in page
    assert "similarity 0.500" in page and "similarity 0.250" in page
    assert "and 2 others nearly the same" in page
    assert f"{'x' * 119}…" in page and "x" * 120 not in page
    assert "<button" not in markup.results(found, OnePicture(), ENGLISH, clickable=False)


def test_numbers_are_written_as_the_language_writes_them():
    found = Found(np.array([1]), np.array([0.5], np.float32), [()])
    assert "somiglianza 0,500" in markup.results(found, OnePicture(), ITALIAN)
    assert "1.234.567 immagini" in markup.heading(ITALIAN, "m", 1234567)
    assert "1,234,567 pictures" in markup.heading(ENGLISH, "m", 1234567)
    assert (ITALIAN.number(-1234.5, 2), ENGLISH.number(-1234.5, 2)) == ("-1.234,50", "-1,234.50")


def test_the_legend_goes_from_less_to_more():
    page = markup.legend(ITALIAN, "viridis")
    shades = re.findall(r"background:(#\w+)", html.unescape(page))
    assert shades[0] == "#440154" and shades[-1] == "#fde725"
    assert page.index(ITALIAN.legend_low) < page.index(ITALIAN.legend_high)


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_fills_in_the_same(language):
    words, italian = LANGUAGES[language], LANGUAGES["it"]
    assert words.language == language
    for name, text in vars(words).items():
        assert text, name
        if isinstance(text, str):
            wanted = set(re.findall(r"\{\w*\}", getattr(italian, name)))
            assert set(re.findall(r"\{\w*\}", text)) == wanted, name
