import copy
import html.parser
import io
import itertools
import json
import re

import pytest
import yaml
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from PIL import Image

from clip_italian.data.records import Record
from data_prep.card import check_summary, hub_license, write_card
from data_prep.card_numbers import Line, count_lengths, funnel
from data_prep.card_plots import funnel_figure, lengths_figure, png, sheet_figure
from data_prep.pages import escape_markdown, plain
from tests.data_prep.browser import dump_in_frame

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> | [a](javascript:alert(3)) ![b](//c.d) "
    "`code` **bold** _em_ ~~no~~ $x^2$ http://evil.example www.evil.example a@evil.example "
    "&amp; {{ 7 * 7 }} {% raw %} \\| # 1. \u202egnp.exe " + "W" * 90
)


def summary():
    """20 entries: 3 skipped, 2 rejected, 15 in 12 rows of which 6 become records."""
    return {
        "format_version": 1, "source": "cc", "title": "Conceptual, in Italian",
        "command": "clip-italian prepare conceptual_captions --path a|b.tsv",
        "date": "2026-01-01T10:00:00Z", "versions": {"clip-italian": "0.1.0", "python": "3.11.7"},
        "inputs": [{"file": "train.tsv", "bytes": 12345, "sha256": "ab" * 32},
                   {"file": "hub/set", "bytes": None, "sha256": None}],
        "entries": {"read": 20, "skipped": {"other language": 3},
                    "rejected": {"wrong number of columns": 2}, "rows": 12, "entries_of_rows": 15},
        "steps": [
            {"name": "text filters", "rows_in": 12, "rows_out": 11, "captions_in": 15,
             "captions_out": 13, "rejected_rows": {"no caption left": 1},
             "rejected_captions": {"too short": 2}, "merged_rows": 0},
            {"name": "duplicates", "rows_in": 11, "rows_out": 6, "captions_in": 13,
             "captions_out": 8, "rejected_rows": {"near-equal picture": 1, HOSTILE: 2},
             "rejected_captions": {"near-equal picture": 1, HOSTILE: 2, "same caption": 2},
             "merged_rows": 2},
        ],
        "records": {"train": 5, "validation": 1}, "captions": {"train": 7, "validation": 1},
        "fingerprint": "cd" * 32, "licenses": {"CC BY 2.0": 2, "": 4}, "sources": {"cc": 6},
        "translators": {"marian": 6}, "languages": {"it": 8, "<b>": 0}, "translation": {"asked": 9},
        "leakage": {"mscoco_it_dev": {"by id": 3, "by picture": 0}},
        "options": {"near_duplicates": 3, "language": "it", "guard_ids": ["a|b"], "note": HOSTILE},
    }  # fmt: skip


def jpeg(shade=100):
    data = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 50, 200)).save(data, "JPEG")
    return data.getvalue()


def pictures():
    known = {"source": "cc", "translator": "marian"}
    return [
        Record(jpeg(1), [HOSTILE], image_id="1", original_captions=[HOSTILE], **known),
        Record(jpeg(9), ["uno", "due", "tre", "quattro"], image_id="2", **known),
    ]


CAPTIONS = ["un gatto"] * 6 + ["un cane nero", HOSTILE]


def rejects(stage="text filters", reason="too short", count=5):
    for line in range(1, count + 1):
        yield {
            "file": "train.tsv",
            "line": line,
            "stage": stage,
            "reason": reason,
            "detail": "\ud800",
            "image": "https://example.org/1.jpg",
            "captions": [HOSTILE],
        }


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    aside = [*rejects(), *rejects("duplicates", HOSTILE, 1)]
    write_card(folder, summary(), pictures(), iter(aside), iter(CAPTIONS))
    return folder


class Page(html.parser.HTMLParser):
    """All tags of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(card):
    return Page((card / "card.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def markdown(card):
    _, matter, text = (card / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(matter), text


def test_numbers_that_add_up():
    check_summary(summary())
    check_summary({"entries": {"read": 0, "skipped": {}, "rejected": {}, "rows": 0}, "steps": []})


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["entries", "read"], 21, r"^read: 21 entries - 3 skipped - 2 rejected = 16, but 15 are"),
        (["entries", "skipped", "other language"], 2, "^read: "),
        (["entries", "rows"], 16, "^read: 16 rows are more than their 15 entries"),
        (["entries", "rows"], 11, "^text filters: 12 rows came in, but read left 11"),
        (["steps", 0, "rows_in"], 13, "^text filters: 13 rows came in, but read left 12"),
        (["steps", 0, "rows_out"], 12, "^text filters: 12 rows - 1 rejected - 0 merged = 11, but"),
        (["steps", 0, "captions_out"], 12, "^text filters: 15 captions - 2 rejected = 13, but 12"),
        (["steps", 1, "captions_in"], 14, "^duplicates: 14 captions came in, but text filters"),
        (["steps", 1, "merged_rows"], 1, "^duplicates: 11 rows"),
        (["steps", 1, "rejected_rows", "near-equal picture"], 0, "^duplicates: 11 rows"),
        (["steps", 1, "rejected_captions", "same caption"], 3, "^duplicates: 13 captions"),
        (["steps", 1, "rejected_captions", "same caption"], -2, "^duplicates: .* is -2, not a"),
        (["steps", 1, "rejected_captions", "same caption"], 2.0, "is 2.0, not a count"),
        (["records", "train"], 6, "^records: 7 in all, but duplicates left 6 rows"),
        (["captions", "validation"], 0, "^captions: 7 in all, but duplicates left 8 captions"),
        (["licenses", ""], 3, "^licenses: 5 in all"),
        (["sources", "cc"], 5, "^sources: 5 in all"),
    ],
)
def test_numbers_that_do_not_add_up(place, value, message):
    wrong = copy.deepcopy(summary())
    part = wrong
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(ValueError, match=message):
        check_summary(wrong)


def test_funnel_has_every_number():
    lines = funnel(summary())
    assert lines["entries"] == [
        Line("kept", "entries read", 20, 20),
        Line("skipped", "other language", 3, 17),
        Line("lost", "wrong number of columns", 2, 15),
        Line("joined", "entries of the same row", 3, 12),
        Line("kept", "rows", 12, 12),
    ]
    rows = [(line.kind, line.count, line.left) for line in lines["rows"]]
    assert rows == [
        ("kept", 12, 12), ("lost", 1, 11), ("kept", 11, 11), ("lost", 2, 9), ("lost", 1, 8),
        ("joined", 2, 6), ("kept", 6, 6),
    ]  # fmt: skip
    assert [line.left for line in lines["captions"]] == [15, 13, 13, 11, 9, 8, 8]
    for unit in lines.values():
        labels = [text.get_text() for axes in funnel_figure(lines).axes for text in axes.texts]
        assert all(any(f"{line.count:,}" in label for label in labels) for line in unit)


def test_lengths_by_hand():
    characters, words = count_lengths(iter(["a" * n for n in range(1, 100)] + ["a b c"]))
    assert (characters.unit, words.unit, words.counts) == ("characters", "words", {1: 99, 3: 1})
    assert characters.facts() == {
        "captions": 100, "mean": 49.55, "median": 49, "p95": 94, "p99": 98, "max": 99,
    }  # fmt: skip
    tokens = count_lengths(["uno due"] * 2500, lambda texts: [len(texts)] * len(texts))[1]
    assert (tokens.unit, tokens.counts) == ("tokens", {500: 500, 1000: 2000})  # batches
    with pytest.raises(ValueError, match="tokenizer: 1 counts for 2 captions"):
        count_lengths(["uno", "due"], lambda texts: [1])


def test_files(card):
    names = {path.name for path in card.iterdir()}
    assert names == {
        "README.md", "card.html", "funnel.png", "caption_lengths.png", "pictures.png",
        "summary.json",
    }  # fmt: skip
    for path in card.glob("*.png"):
        with Image.open(path) as image:
            image.verify()
            assert min(image.size) > 200
    facts = json.loads((card / "summary.json").read_text(encoding="utf-8"))
    assert facts.pop("caption_lengths")["words"]["median"] == 2
    assert facts == summary()


def test_both_cards_have_every_number(page, markdown):
    for text in (" ".join(page.text), MarkdownIt().enable("table").render(markdown[1])):
        for lines in funnel(summary()).values():
            for line in lines:
                assert re.search(rf"(?<!\d){line.count:,}(?!\d)", text)
        for said in ("12,345", "ab" * 32, "cd" * 32, "3.11.7", "mscoco_it_dev", "near_duplicates"):
            assert said in text
        assert "not stated" in text and "tokens were not counted" in text


def test_page_needs_nothing_and_runs_nothing(page):
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "a"}
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 3  # the histograms and two pictures
    for attrs in images:
        assert attrs["src"].startswith("data:image/") and attrs["alt"]
        assert not any(name.startswith("on") for name in attrs)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
    assert "\u202e" not in "".join(page.text) and plain(HOSTILE) in "".join(page.text)


def test_markdown_is_text_and_nothing_else(markdown):
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    kinds, images, sizes = set(), [], []

    def walk(tokens):
        for token in tokens:
            kinds.add(token.type)
            if token.type == "image":
                images.append(token.attrs["src"])
            elif token.children:
                walk(token.children)

    tokens = parser.parse(markdown[1])
    walk(tokens)
    assert images == ["caption_lengths.png", "pictures.png", "funnel.png"]
    assert not kinds & {
        "html_inline",
        "html_block",
        "link_open",
        "em_open",
        "strong_open",
        "s_open",
    }
    for token in tokens:  # no cell of a hostile text breaks its table
        sizes += [0] if token.type == "tr_open" else []
        if token.type in ("td_open", "th_open"):
            sizes[-1] += 1
        if token.type == "table_close":
            assert len(set(sizes)) == 1
            sizes = []
    shown = html.unescape(parser.render(markdown[1]))
    assert (
        plain(HOSTILE) in shown and "clip-italian prepare conceptual_captions --path a|b" in shown
    )


def test_escaped_markdown_keeps_bare_addresses_from_becoming_links():
    assert escape_markdown("http://a.b www.a.b c@d.e") == r"http\://a\.b www\.a\.b c\@d\.e"
    assert escape_markdown("a\nb\tc\0\ud800") == "a b c\ufffd\ufffd"


def test_front_matter_is_what_the_hub_reads(card, markdown):
    assert markdown[0] == {
        "pretty_name": "Conceptual, in Italian",
        "language": ["it"],
        "license": ["cc-by-2.0", "unknown"],
        "task_categories": ["image-to-text", "text-to-image", "zero-shot-image-classification"],
        "size_categories": ["n<1K"],
    }
    assert DatasetCard((card / "README.md").read_text()).data.size_categories == ["n<1K"]


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ("", "unknown"),
        ("CC BY 2.0", "cc-by-2.0"),
        ("CC-BY-SA-4.0", "cc-by-sa-4.0"),
        ("https://creativecommons.org/licenses/by-nc-sa/2.0/", "cc-by-nc-sa-2.0"),
        ("http://creativecommons.org/licenses/by-sa/3.0/deed.it", "cc-by-sa-3.0"),
        ("https://creativecommons.org/licenses/by-sa/3.0/it/", "other"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "cc0-1.0"),
        ("CC0", "cc0-1.0"),
        ("CC BY-SA 2.0", "other"),  # the hub knows no such version
        ("Apache License 2.0", "apache-2.0"),
        ("all rights reserved", "other"),
    ],
)
def test_licenses(stated, name):
    assert hub_license(stated) == name


def test_few_rejects_of_each_reason_are_shown(tmp_path, card):
    again = tmp_path / "again"
    aside = [*rejects(), *rejects("duplicates", HOSTILE, 1)]
    write_card(again, summary(), pictures(), aside, CAPTIONS)
    for name in ("README.md", "card.html"):
        text = (again / name).read_text(encoding="utf-8")
        assert text == (card / name).read_text(encoding="utf-8")  # always the same
        assert len(re.findall(r"train\\?\.tsv, line \d", text)) == 3 + 1


def test_tokens_and_bare_summaries(tmp_path):
    bare = {key: summary()[key] for key in ("source", "entries", "steps", "records", "captions")}
    write_card(tmp_path, bare, [], [], CAPTIONS, lambda texts: [7] * len(texts))
    text = (tmp_path / "README.md").read_text()
    assert "| length | characters | tokens |" in text and "| median | 8 | 7 |" in text
    assert 'license: "unknown"' in text and "language" not in text.split("---")[1]
    assert not (tmp_path / "pictures.png").exists() and "pictures.png" not in text


def test_captions_must_be_as_many_as_counted(tmp_path):
    with pytest.raises(ValueError, match="captions: 7 were given, the summary has 8"):
        write_card(tmp_path / "card", summary(), [], [], CAPTIONS[1:])
    assert not (tmp_path / "card").exists()


def test_pictures_of_any_text():
    cells = [(jpeg(), text) for text in (HOSTILE, "W" * 300, "漢字の説明 " * 20, r"$\frac{1$")]
    for figure in (sheet_figure(cells), lengths_figure(count_lengths(["a"]))):
        assert Image.open(io.BytesIO(png(figure))).format == "PNG"


# Puts a page into a frame and says what sticks out of it or of its own box; tables may scroll.
WRAPPER = """<!DOCTYPE html><meta charset="utf-8">
<iframe style="width: WIDTHpx; height: 900px; border: 0"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {
  const wide = [...frame.contentDocument.querySelectorAll("body *")].filter((one) =>
    !one.closest(".scroll table") && getComputedStyle(one).display !== "inline" &&
    !one.matches(".scroll") && (one.getBoundingClientRect().right > WIDTH + 0.5 ||
    one.scrollWidth > one.clientWidth + 1));
  const found = wide.map((one) => one.outerHTML.slice(0, 200)).join();
  document.title = `done ${frame.contentDocument.body.offsetWidth} ${found}`;
};
frame.srcdoc = CONTENTS;
</script>"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 360, 1200])
def test_nothing_is_wider_than_the_page(card, tmp_path, width):
    text = (card / "card.html").read_text(encoding="utf-8")
    done = dump_in_frame(text, WRAPPER, width, tmp_path, 5000)
    found = re.search(r"<title>done (\d+) (.*?)</title>", done.stdout, re.DOTALL)
    assert found, done.stderr
    assert int(found[1]) > 300 and not found[2].strip()
