import gzip
import hashlib
import pickle
from collections import Counter

import pytest

from clip_italian.config import ConfigError
from data_prep.rows import Reject, Row, Skip
from data_prep.wit import COLUMNS, Wit
from tests.data_prep.hostile import KINDS, entries, hostile_lines, outcomes

HEADER = (
    "language\tpage_url\timage_url\tpage_title\tsection_title\thierarchical_section_title\t"
    "caption_reference_description\tcaption_attribution_description\t"
    "caption_alt_text_description\tmime_type\toriginal_height\toriginal_width\tis_main_image\t"
    "attribution_passes_lang_id\tpage_changed_recently\tcontext_page_description\t"
    "context_section_description"
)
URL = "https://upload.wikimedia.org/wikipedia/commons/a/a1/Caff%C3%A8_Florian.JPG"
DEFAULTS = {
    "language": "it",
    "page_url": "https://it.wikipedia.org/wiki/Venezia",
    "image_url": URL,
    "caption_reference_description": 'Il "caffè" Florian',
    "caption_attribution_description": "English: the café",
    "caption_alt_text_description": "",
    "mime_type": "image/jpeg",
    "original_height": "600",
    "original_width": "800",
    "is_main_image": "false",
    "context_page_description": 'Una città, "la Serenissima',
}


def line(**fields) -> str:
    return "\t".join((DEFAULTS | fields).get(column, "") for column in COLUMNS)


def read(tmp_path, lines, **flags):
    path = tmp_path / "wit.tsv"
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    source = Wit((str(path),), **flags)
    assert source.inputs() == [str(path)]
    return list(pickle.loads(pickle.dumps(source)).read(str(path)))  # noqa: S301 (our own)


def test_rows_of_the_language_are_read_and_others_skipped(tmp_path):
    lines = [
        "\ufeff" + HEADER + "\r",
        line(),
        line(language="en", caption_reference_description="Florian"),
        line(language="ita"),
        line(language="it", image_url="http://b.org/2.png", mime_type="") + "\r",
        line(language="") + "\n",
    ]
    caption = ('Il "caffè" Florian',)
    assert read(tmp_path, lines) == [
        Row(2, caption, URL, image_id=URL, url=URL),
        Row(
            5,
            caption,
            "http://b.org/2.png",
            image_id="http://b.org/2.png",
            url="http://b.org/2.png",
        ),
        Skip("other language", 3),
    ]
    assert [item.line for item in read(tmp_path, lines, language="ita")[:-1]] == [4]
    assert [item.line for item in read(tmp_path, lines, language="")] == [2, 3, 4, 5, 6]


def test_captions_of_several_columns_are_joined(tmp_path):
    rows = [
        line(),
        line(caption_alt_text_description='Il "caffè" Florian'),
        line(caption_reference_description=" ", caption_alt_text_description="un caffè"),
    ]
    columns = ("caption_alt_text_description", "caption_reference_description")
    items = read(tmp_path, [HEADER, *rows], caption_column=columns)
    assert [item.captions for item in items] == [
        ('Il "caffè" Florian',), ('Il "caffè" Florian',), ("un caffè",),
    ]  # fmt: skip
    columns = ("caption_attribution_description", "caption_reference_description")
    assert read(tmp_path, [HEADER, line()], caption_column=columns)[0].captions == (
        "English: the café", 'Il "caffè" Florian',
    )  # fmt: skip


def test_bad_rows_are_rejected_with_line_and_reason(tmp_path):
    cases = [
        (line(caption_reference_description=""), "no caption"),
        (line(caption_reference_description=" \u00a0"), "no caption"),
        (line(image_url=""), "no image URL"),
        (line(image_url="../../secret.png"), "no image URL"),
        (line(image_url="file:///etc/passwd"), "no image URL"),
        (line(mime_type="image/svg+xml"), "no raster image"),
        (line(mime_type="application/ogg"), "no raster image"),
        (line() + "\t", "wrong number of columns"),
        (line().rpartition("\t")[0], "wrong number of columns"),
        (" ", "wrong number of columns"),
        (line(language="en").replace("\t", " ", 1), "wrong number of columns"),
        (line().encode() + b"\xe8", "bad UTF-8"),
        (line(page_title="a\0b"), "NUL character"),
    ]
    found = read(tmp_path, [HEADER, *(case for case, _ in cases)])
    assert [(item.line, item.reason) for item in found] == [
        (number, reason) for number, (_, reason) in enumerate(cases, 2)
    ]
    assert found[5] == Reject(7, "no raster image", "image/svg+xml")


def test_another_format_is_refused_with_its_columns(tmp_path):
    path = tmp_path / "other.tsv"
    for text, found in [
        ("caption\turl\nx\ty\n", "has 2 columns, caption, url"),
        (HEADER.replace("page_title", "title") + "\n", "has 17 columns, language, page_url, image"),
        ("", "has 1 columns, $"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"path: .*other.tsv is no file of WIT: .*{found}"):
            Wit((str(path),)).inputs()
    path.write_text("caption\turl\nx\ty\nz\tw\n")
    found = "its first line has 2 columns, caption, url"
    assert list(Wit((str(path),)).read(str(path))) == [Reject(1, "not a WIT header", found, 2)]
    path.write_bytes(gzip.compress(HEADER.encode())[:30])
    with pytest.raises(ConfigError, match="is no file of WIT: broken archive"):
        Wit((str(path),)).inputs()
    assert list(Wit((str(path),)).read(str(path))) == []


def test_local_pictures_are_found_by_name_or_hash_of_the_url(tmp_path):
    (tmp_path / "images").mkdir()
    urls = {
        URL: "Caffè_Florian.JPG",
        "https://a.org/b/hash.Png?x=1/y#z": hashlib.sha1(b"https://a.org/b/hash.Png?x=1/y#z")
        .hexdigest() + ".png",
        "https://a.org/plain.jpg?width=3": "plain.jpg",
    }  # fmt: skip
    for name in urls.values():
        (tmp_path / "images" / name).touch()
    missing = {
        f"https://a.org/{part}": hashlib.sha1(f"https://a.org/{part}".encode()).hexdigest() + ending
        for part, ending in [
            ("none.jpg", ".jpg"), ("", ""), ("..", ""), ("..%2fimages", ""), ("%00.jpg", ".jpg"),
            ("è" * 300 + ".tiff", ".tiff"), ("[::1", ""), ("x.jpg%2F", ""),
        ]
    }  # fmt: skip
    lines = [line(image_url=url) for url in urls | missing]
    items = read(tmp_path, [HEADER, *lines], images=str(tmp_path / "images"))
    assert [item.image for item in items] == [
        str(tmp_path / "images" / name) for name in [*urls.values(), *missing.values()]
    ]
    assert items[0].image_id == items[0].url == URL
    with pytest.raises(ConfigError, match="images: no folder at 'none'"):
        Wit((str(tmp_path / "wit.tsv"),), images="none").inputs()


def test_hostile_lines_are_all_accounted_for(tmp_path):
    def make(number, text):
        language = "en" if number % 4 == 1 else "it"
        return line(language=language, context_section_description=f"la città è {text}")

    lines = hostile_lines(make, "\t")
    path = tmp_path / "wit.tsv.gz"
    path.write_bytes(gzip.compress(b"\n".join([HEADER.encode(), *(x for _, x in lines)]), 1))
    source = Wit((str(tmp_path),))
    items = list(source.read(*source.inputs()))
    assert entries(items) == 10_000 == sum(KINDS.values())
    of_line, skipped = outcomes(items)
    expected, others = {}, 0
    for number, (kind, data) in enumerate(lines, 2):
        if kind == "line too long":
            expected[number] = kind
        elif kind == "ragged":
            expected[number] = "wrong number of columns"
        elif not data.startswith(b"it\t"):  # a byte order mark is no part of a language
            others += kind != "blank"
        else:
            expected[number] = kind if kind in ("bad UTF-8", "NUL character") else "row"
    assert of_line == expected
    assert skipped == {"blank line": KINDS["blank"], "other language": others}
    assert others > 2400 and Counter(of_line.values())["bad UTF-8"] > 300
    some = {5: "bad UTF-8", 33: "wrong number of columns", 1968: "line too long", 3674: "row"}
    assert some.items() <= of_line.items()


def test_a_cut_download_gives_the_rows_before_the_cut(tmp_path):
    lines = [line(image_url=f"https://a.org/{number}.jpg") for number in range(3000)]
    packed = gzip.compress("\n".join([HEADER, *lines]).encode())
    path = tmp_path / "wit.tsv.gz"
    path.write_bytes(packed[: len(packed) // 2])
    *rows, last = Wit((str(path),)).read(str(path))
    assert [row.line for row in rows] == list(range(2, len(rows) + 2)) and len(rows) > 1000
    assert last == Reject(len(rows) + 2, "broken archive", "ends too early")
