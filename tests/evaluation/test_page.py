"""The page: every number of the report is on it, it needs no other file, and it fits a phone."""

import html.parser
import itertools
import re

import numpy as np
import pytest

from clip_italian.evaluation import examples, page, page_sections, report, report_tables
from tests.data_prep.browser import dump_in_frame
from tests.evaluation import example_report

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> &amp; {{ 7 * 7 }} \u202egnp.exe "
    "\ud800 " + "W" * 90
)


class Page(html.parser.HTMLParser):
    """All tags of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.style = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.style = tag == "style"

    def handle_data(self, data):
        if not self.style:
            self.text.append(data)


@pytest.fixture(scope="module")
def example():
    return example_report.make(images=100, classes=200, queries=6)


@pytest.fixture(scope="module")
def written(example, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    page.write_page(path, *example)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def seen(written):
    return Page(written)


def write(tmp_path, results, items=None, exhibits=(), **fields):
    made = report.make_report(results, command="evaluate", **fields)
    page.write_page(tmp_path / "page.html", made, items or [{} for _ in results], exhibits)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def text_of(seen):
    return " ".join(" ".join(seen.text).split())


def test_every_number_of_the_tables_is_there(example, seen):
    text = text_of(seen)
    tables = report_tables.collect(example[0])
    assert len(tables) == 4
    for table in tables:
        assert table.facts in text
        for row in table.rows:
            for cell in filter(None, row.cells):
                assert f"{cell.number(cell.value)} {cell.interval()}".strip() in text
    for name in (*example_report.MODELS, *example_report.VARIANTS, "xm3600_it_p1", "tiny_imagenet"):
        assert name in text


def test_how_it_was_made_is_there(example, seen):
    text = text_of(seen)
    made = example[0]
    assert made["command"] in text
    for what, value in report_tables.made_by(made):
        assert f"{what} {value}" in text
    for one in made["results"]:
        assert one["data_fingerprint"] in text and one["protocol"] in text


def test_comparisons_and_seeds_are_there(seen):
    text = text_of(seen)
    assert "xm3600_it_p1, text → image R@1 +9.4 [6.3, 12.3] <0.001" in text
    assert "tiny_imagenet, zero-shot acc@1 (legacy, {}) -0.7 [-1.2, -0.2] 0.004" in text
    assert "not corrected for their number" in text
    assert "xm3600_it_p1, text → image R@1 CLIP-Italian 41.2 0.6 3" in text


def test_page_needs_nothing_and_runs_nothing(seen, written):
    tags = {tag for tag, _ in seen.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "a"}
    for tag, attrs in seen.tags:
        assert not any(name.startswith("on") for name in attrs)
        if tag == "img":
            assert attrs["src"].startswith("data:image/jpeg;base64,") and attrs["alt"]
        if tag == "svg":
            assert attrs["role"] == "img" and len(attrs["aria-label"]) > 20
    policy = next(a["content"] for t, a in seen.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"https?://|@import", written)
    headings = [int(tag[1]) for tag, _ in seen.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
    assert "prefers-color-scheme: dark" in written
    assert "nan" not in re.findall(r"\bnan\b", text_of(seen).lower())


def test_a_typical_page_is_below_three_megabytes(written):
    assert 5e5 < len(written) < 3e6


def test_curves_of_all_models_are_in_one_figure(seen):
    labels = [attrs["aria-label"] for tag, attrs in seen.tags if tag == "svg"]
    curves = [label for label in labels if label.startswith("Recall at k")]
    assert len(curves) == 4  # two sets, two directions
    assert all(model in curve for curve in curves for model in example_report.MODELS)


def test_axis_shows_how_far_apart_the_values_are():
    assert page_sections._axis([0.341, 0.321, 0.596], None) == (0.3, 0.1, 3)
    assert page_sections._axis([0.5, 0.512], None) == (0.5, 0.005, 3)
    assert page_sections._axis([0.0, 1.0], None) == (0.0, 0.2, 5)
    assert page_sections._axis([0.25], None) == (0.25, 0.005, 1)
    assert page_sections._axis([1.0], None) == (0.995, 0.005, 1)
    assert page_sections._axis([0.4, 0.6], 0.5) == (0.0, 0.25, 4)


def test_dots_stand_where_their_values_are(tmp_path):
    values = {"contrast/accuracy": 0.75, "contrast/number/accuracy": 0.25}
    one = example_report.contrast(0, np.random.default_rng(0))
    text = write(tmp_path, [report.Result(**{**one.__dict__, "metrics": values})])
    assert re.findall(r'class="dot" style="left:([\d.]+)%', text) == ["75.000", "25.000"]
    assert re.findall(r'class="mark" style="left:([\d.]+)%', text) == ["50.000"] * 2
    assert "These are probes, not truth" in text


def test_many_classes_show_the_best_the_worst_and_all_as_a_histogram(seen, written):
    text = text_of(seen)
    assert "Best 20" in text and "Worst 20" in text and "All 199 classes" in text
    assert "Classes without an image, not shown: 1." in text
    labels = [
        a["aria-label"] for t, a in seen.tags if t == "svg" and "Histogram" in a["aria-label"]
    ]
    assert len(labels) == 4


def classified(per_class, **fields):
    shared = {"model": "m", "set": "s", "protocol": "folder", "data_fingerprint": "ab"}
    values = {"zero_shot/acc@1": 0.5}
    return report.Result(
        **shared, task="zero_shot", language="it", images=9, captions=3, metrics=values,
        details={"per_class": per_class, "confusions": [["tinca", "gallo", 2]]}, **fields,
    )  # fmt: skip


def test_few_classes_are_all_shown_sure_ones_first(tmp_path):
    per_class = [["n0", "tinca", 0.5, 2], ["n1", "gallo", 1.0, 1], ["n2", "gatto", 1.0, 3]]
    text = write(tmp_path, [classified(per_class)])
    bars = re.findall(r'<bdi lang="it" title="(n\d)">', text)
    assert bars == ["n2", "n1", "n0"]
    assert re.findall(r'class="bar"[^>]*><i style="width:([\d.]+)%', text) == [
        "100.000", "100.000", "50.000",
    ]  # fmt: skip
    assert "Histogram" not in text
    assert "is was taken for images tinca gallo 2" in text_of(Page(text))


SAME = ["n3", "tinca", 0.5, 2]


def test_variants_stand_side_by_side_where_they_differ(tmp_path):
    new = [["n0", "aquilone", 0.25, 4], ["n1", "gallo", 1.0, 4], ["n2", "gatto", None, 0], SAME]
    old = [["n0", "nibbio", 1.0, 4], ["n1", "gallo", 1.0, 4], ["n2", "micio", None, 0], SAME]
    results = [classified(new, variant="it"), classified(old, variant="legacy")]
    text = text_of(Page(write(tmp_path, results)))
    assert "class it legacy images n0 aquilone 25% nibbio 100% 4 The largest" in text
    assert "up to 1. Classes without any: 2." in text


def test_agreement_counts_queries(tmp_path):
    made = [
        report.Result(model=name, set="s", protocol="p", data_fingerprint="ab", task="retrieval",
                      images=4, captions=4, metrics={"text_to_image/R@5": 0.5})
        for name in "ab"
    ]  # fmt: skip
    items = [
        {"text_to_image": np.array(ranks)} for ranks in ([1, 5, 6, 9, 2, 3], [1, 9, 5, 8, 3, 7])
    ]
    test = {"set": "s", "task": "retrieval", "variant": "", "metric": "text_to_image/R@5", "a": "a",
            "b": "b", "difference": 0.0, "low": -0.1, "high": 0.1, "p_value": 1.0}  # fmt: skip
    text = write(tmp_path, made, items, comparisons=[test])
    assert "1.000 2 2 1 1 " in text_of(Page(text))
    for changed in (
        {"metric": "text_to_image/MRR@5"}, {"metric": "image_to_text/R@5"}, {"b": "c"},
        {"metric": "text_to_image/median_rank"},
    ):  # fmt: skip
        text = write(tmp_path, made, items, comparisons=[{**test, **changed}])
        assert "queries that the models find" not in text
    twice = [made[0], made[0], made[1]]  # two seeds of a: nobody can say which
    for arrays in ([items[0], *items], [items[0], items[0], {}]):
        text = write(tmp_path, twice, arrays, comparisons=[test])
        assert "queries that the models find" not in text


def test_gallery_stands_side_by_side_with_the_rule(example, seen, written):
    text = text_of(seen)
    exhibit = example[2][0]
    for chosen in exhibit.chosen:
        assert chosen.rule in text
        for row in (*chosen.best, *chosen.worst):
            assert row[0].query in text
    strips = written.count('<div class="strip">')
    assert strips == 2 * 2 * (6 + 6) * 2  # sets, choosing models, queries, models
    assert written.count('<div class="sides several">') == strips // 2
    rights = re.findall(r'<figure class="(right|right apart)">', written)
    assert len(rights) == strips == written.count("✓ ")
    assert 'dir="auto" lang="it"' in written


def test_gallery_of_one_model_and_pictures_at_their_own_proportions(tmp_path):
    images = np.eye(3, dtype=np.float32)
    one = examples.Embedded("m", images, images[[0, 1]], np.array([1, 1]))
    chosen = examples.best_and_worst([one], np.array([0, 1]), ["a", "b"])
    asked = []

    def thumbnails(indices):
        asked.append(list(indices))
        return [np.zeros((40, 80 + int(index), 3), np.uint8) for index in indices]

    exhibit = page.Exhibit("s", "hu", [chosen], thumbnails)
    text = write(tmp_path, [classified([["n0", "a", 1.0, 1]])], None, [exhibit])
    assert asked == [[0, 1, 2]]  # each picture once
    assert '<div class="sides">' in text and 'lang="hu"' in text
    assert "object-fit: contain" in text


def test_hostile_texts_are_shown_as_they_are(tmp_path):
    images = np.eye(2, dtype=np.float32)
    one = examples.Embedded(HOSTILE, images, images, np.array([1, 1]))
    chosen = examples.best_and_worst([one], np.array([0, 1]), [HOSTILE] * 2)
    exhibit = page.Exhibit(HOSTILE, "it", [chosen], lambda n: np.zeros((len(n), 4, 4, 3), np.uint8))
    per_class = [["<b>", HOSTILE, 1.0, 1], ["n", HOSTILE, 0.0, 1]]
    results = [classified(per_class, variant=name) for name in (HOSTILE, "b")]
    curves = report.Result(
        model=HOSTILE, set=HOSTILE, protocol=HOSTILE, data_fingerprint="ab", task="retrieval",
        images=2, captions=2, metrics={"text_to_image/R@1": 1.0},
        details={"recall_curves": {"text_to_image": [[1, 1.0]]}},
    )  # fmt: skip
    seen = Page(write(tmp_path, [*results, curves], None, [exhibit]))
    tags = {tag for tag, _ in seen.tags}
    assert "script" not in tags and "b" in tags
    assert all(a["src"].startswith("data:") for t, a in seen.tags if t == "img")
    text = "".join(seen.text)
    assert "{{ 7 * 7 }}" in text and "\\ud800" in text


def test_page_of_a_report_of_version_1(tmp_path):
    path = example_report.__file__.replace("example_report.py", "fixtures/report_v1.json")
    with open(path, encoding="utf-8") as file:
        made = report.parse(file.read())
    page.write_page(tmp_path / "page.html", made, [{}, {}, {}])
    assert "histograms" in (tmp_path / "page.html").read_text(encoding="utf-8")


# Puts a page into a frame and says what sticks out of it or of its own box; tables may scroll.
WRAPPER = """<!DOCTYPE html><meta charset="utf-8">
<iframe style="width: WIDTHpx; height: 900px; border: 0"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {
  const wide = [...frame.contentDocument.querySelectorAll("body *")].filter((one) =>
    !one.closest(".scroll table, svg, .axis, .track") &&
    getComputedStyle(one).display !== "inline" &&
    !one.matches(".scroll") && (one.getBoundingClientRect().right > WIDTH + 0.5 ||
    one.scrollWidth > one.clientWidth + 1));
  const found = wide.map((one) => one.outerHTML.slice(0, 200)).join();
  const colours = [...frame.contentDocument.querySelectorAll("svg text, svg path")].map((one) =>
    getComputedStyle(one).fill + getComputedStyle(one).stroke);
  const broken = [...frame.contentDocument.images].filter((one) => !one.naturalWidth).length;
  document.title = `done ${frame.contentDocument.body.offsetWidth} ` +
    `${new Set(colours).size} ${broken} ${found}`;
};
frame.srcdoc = CONTENTS;
</script>"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 375, 1200])
def test_nothing_is_wider_than_the_page(written, tmp_path, width):
    text = written.replace('loading="lazy"', "")
    done = dump_in_frame(text, WRAPPER, width, tmp_path, 8000)
    found = re.search(r"<title>done (\d+) (\d+) (\d+) (.*?)</title>", done.stdout, re.DOTALL)
    assert found, done.stderr
    assert int(found[1]) > 300 and not found[4].strip()
    assert int(found[2]) >= 4  # the page's colours have reached the figures
    assert int(found[3]) == 0  # every picture can be shown
