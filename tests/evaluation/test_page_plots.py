"""Figures of the page: what is drawn, in which colours, and that they are text one can trust."""

import re
import xml.etree.ElementTree as ET

from clip_italian.evaluation import page_plots

CURVES = {0: [[1, 0.5], [10, 0.75], [100, 1.0]], 9: [[1, 0.0], [10, 0.25], [100, 0.5]]}


def lines(text, colour):
    """Points of the lines of a colour, from the upper left corner."""
    found = re.findall(rf'<path d="([^"]+)"[^>]*stroke: var\(--{colour}\)[^"]*"', text)
    return [[tuple(map(float, p)) for p in re.findall(r"[ML] ([\d.]+) ([\d.]+)", d)] for d in found]


def test_recall_rises_in_equal_steps_of_the_logarithm():
    text = page_plots.recall_svg(CURVES, "two curves")
    (first,), (second,) = lines(text, "m0"), lines(text, "m1")  # the tenth has the second colour
    assert len(first) == len(second) == 3
    assert abs((first[2][0] - first[1][0]) - (first[1][0] - first[0][0])) < 0.01
    assert first[0][1] > first[1][1] > first[2][1]  # y points down
    assert abs(first[0][1] - second[2][1]) < 0.01  # both are a half
    assert re.search(r"stroke-dasharray[^\"]*stroke: var\(--m1\)", text)
    assert not re.search(r"stroke-dasharray[^\"]*stroke: var\(--m0\)", text)
    labels = re.findall(r"<text[^>]*>([^<]+)</text>", text)
    assert labels[:7] == ["1", "2", "5", "10", "20", "50", "100"]
    assert {"0%", "100%", "k"} <= set(labels)


def test_a_curve_of_one_point_is_seen():
    text = page_plots.recall_svg({2: [[1, 0.5]]}, "one point")
    assert "<use" in text and "var(--m2)" in text


def test_histogram_counts_classes():
    text = page_plots.accuracy_svg([0.0, 0.01, 0.04, 0.5, 1.0], 3, "five classes")
    bars = re.findall(r'<path d="([^"]+)"[^>]*fill: var\(--m3\)', text)
    heights = []
    for bar in bars:
        ys = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", bar)]
        heights.append(max(ys) - min(ys))
    tallest = max(heights)
    assert [round(3 * height / tallest) for height in heights if height] == [3, 1, 1]
    # Twenty bars of 5 points each: 0 to 4% are the first, 50% is the eleventh, 100% the last.
    assert [place for place, height in enumerate(heights) if height] == [0, 10, 19]
    assert len(bars) == 20


def test_svg_is_for_the_inside_of_a_page():
    text = page_plots.recall_svg(CURVES, 'a "b" <c>')
    root = ET.fromstring(text)
    assert root.attrib["aria-label"] == 'a "b" <c>' and root.attrib["role"] == "img"
    assert set(root.attrib) == {"role", "aria-label", "viewBox"}  # the page gives the size
    assert not re.search(r"<(script|style|metadata|image|!--)|https?:|font-family", text)
    assert not re.search(r"#[0-9a-f]{6}", text)  # every colour is the page's
    ids = re.findall(r'id="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    referred = set(re.findall(r"url\(#([^)]+)\)", text))
    assert referred and referred <= set(ids)


def test_svg_is_always_the_same_and_shares_no_id_with_another():
    text = page_plots.recall_svg(CURVES, "one")
    assert page_plots.recall_svg(CURVES, "one") == text
    ids = [
        re.findall(r'id="([^"]+)"', page_plots.recall_svg(CURVES, alt)) for alt in ("one", "two")
    ]
    assert not set(ids[0]) & set(ids[1])


def test_styles_differ_for_24_models():
    assert len({page_plots.style_of(number) for number in range(24)}) == 24
    assert page_plots.style_of(0) == (0, "solid") and page_plots.style_of(8) == (0, "dashed")
