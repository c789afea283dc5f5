import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from clip_italian.config import ConfigError
from data_prep.jsonl import Jsonl, parse_row
from data_prep.rows import Reject, Row, Skip
from tests.data_prep.hostile import KINDS, entries, hostile_lines, outcomes


def read(tmp_path, rows, **flags):
    file = tmp_path / "rows.jsonl"
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in rows]
    file.write_bytes(b"\n".join(lines) + b"\n")
    source = Jsonl((str(file),), **flags)
    assert source.inputs() == [str(file)]
    return list(source.read(str(file)))


def test_rows_are_as_the_file_states_them(tmp_path):
    full = {
        "image": "images/1.png",
        "captions": ["  un\tgatto \n nero ", "", "L\u2019altro gatto", "L\u2019altro gatto"],
        "source": "wit",
        "image_id": 17,
        "url": "https://example.org",
        "license": "CC0",
        "original_captions": ["a black cat", "nothing", "the other cat", "another cat"],
        "translator": "deepl",
        "split": "Dev",
    }
    old = {"image_path": "images/2.png", "captions": ["un cane"], "split": "extra"}
    both = {"image": "3.png", "image_path": "elsewhere/3.png", "captions": "un asino"}
    online = {"image_url": "https://example.org/4.jpg", "captions": ["un pesce"], "image_id": None}
    assert read(tmp_path, [b"\xef\xbb\xbf" + json.dumps(full).encode(), old, both, online]) == [
        Row(
            1,
            ("  un\tgatto \n nero ", "L’altro gatto"),
            "images/1.png",
            image_id="17",
            split="validation",
            source="wit",
            url="https://example.org",
            license="CC0",
            original_captions=("a black cat", "the other cat"),
            translator="deepl",
        ),
        Row(2, ("un cane",), "images/2.png"),
        Row(3, ("un asino",), "3.png"),
        Row(4, ("un pesce",), "https://example.org/4.jpg"),
    ]


def test_named_splits_are_kept(tmp_path):
    names = ["train", "validation", "val", "dev", "test", "Test", "extra", "", None, 3]
    rows = [{"image": "1.png", "captions": ["un gatto"], "split": name} for name in names]
    found = [row.split for row in read(tmp_path, rows)]
    assert found == ["train", *["validation"] * 5, *[""] * 4]


def test_keys_can_be_named(tmp_path):
    row = {
        "file": "1.png",
        "image": "no.png",
        "title": "un gatto",
        "texts": ["due", None],
        "n": "a",
    }
    flags = {"caption_column": ("texts", "title"), "image_column": "file", "id_column": "n"}
    assert read(tmp_path, [row], **flags) == [Row(1, ("due", "un gatto"), "1.png", image_id="a")]


def test_originals_of_another_number_are_kept_as_they_are(tmp_path):
    row = {"image": "1.png", "captions": ["a", "b", ""], "original_captions": ["c", "d", "", "c"]}
    assert read(tmp_path, [row])[0].original_captions == ("c", "d")


def test_bad_rows_are_rejected_with_line_and_reason(tmp_path):
    good = {"image": "images/1.png", "captions": ["un gatto"]}
    cases = [
        (b"{not json", "bad JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"image": "\xff"}', "bad UTF-8"),
        (b'{"image": "images/1.png", "captions": ["\\ud800"]}', "bad Unicode"),
        (b'{"image": "\\udfff", "captions": ["a"]}', "bad Unicode"),
        (b"[" * 100_000, "bad JSON"),
        (b'{"a": ' * 100_000, "bad JSON"),
        (b'{"image": 1' + b"0" * 5000 + b', "captions": ["a"]}', "bad JSON"),
        (b'{"image": "images/1.png\0", "captions": ["a"]}', "NUL character"),
        (good | {"image": "images/\0.png"}, "NUL character"),
        (good | {"captions": []}, "no caption"),
        (good | {"captions": [" ", None]}, "no caption"),
        (good | {"captions": ""}, "no caption"),
        ({"image": "images/1.png"}, "no caption"),
        (good | {"captions": ["un gatto", 3]}, "captions are not texts"),
        (good | {"captions": {"it": "un gatto"}}, "captions are not texts"),
        (good | {"captions": 3}, "captions are not texts"),
        ({"captions": ["un gatto"]}, "no image"),
        (good | {"image": ""}, "no image"),
        (good | {"image": 7}, "image is no path"),
        (good | {"image": ["images/1.png"]}, "image is no path"),
        (good | {"license": ["CC0"]}, "not a text"),
    ]
    items = read(tmp_path, [good, b"", *(case for case, _ in cases), b"  \t "])
    assert items[0] == Row(1, ("un gatto",), "images/1.png")
    assert items[-1] == Skip("blank line", 2)
    assert [(item.line, item.reason) for item in items[1:-1]] == [
        (line, reason) for line, (_, reason) in enumerate(cases, 3)
    ]
    assert items[1] == Reject(3, "bad JSON", "{not json")


def test_hostile_lines_are_all_accounted_for(tmp_path):
    def make(number, text):
        row = {"image": f"{number}.jpg", "captions": [f"il gatto {number} è nero {text}"]}
        return json.dumps(row, ensure_ascii=False)

    lines = hostile_lines(make, "]")
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(line for _, line in lines), 1))
    items = list(Jsonl((str(path),)).read(str(path)))
    assert entries(items) == 10_000 == sum(KINDS.values())
    of_line, skipped = outcomes(items)
    same = ("bad UTF-8", "NUL character", "line too long")
    expected = {"ragged": "bad JSON", "byte order mark": "bad JSON"} | {kind: kind for kind in same}
    assert of_line == {
        line: expected.get(kind, "row")
        for line, (kind, _) in enumerate(lines, 1)
        if kind != "blank"
    }
    assert skipped == {"blank line": KINDS["blank"]}
    assert Counter(of_line.values())["row"] == 8000 + 400 + 150 + 60 + 10
    some = {4: "bad UTF-8", 32: "bad JSON", 64: "NUL character", 1967: "line too long", 3673: "row"}
    assert some.items() <= of_line.items()


def test_nothing_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"path: no file at .*; name files, folders"):
        Jsonl((str(tmp_path),)).inputs()


def test_parse_row():
    assert parse_row('{"a": 1}') == {"a": 1}
    assert parse_row("3") == "not a JSON object"
    assert parse_row("") == "bad JSON"


@pytest.mark.real_data
@pytest.mark.skipif("CLIP_ITALIAN_REAL_DATA" not in os.environ, reason="no real data at hand")
def test_real_rows_are_read_without_loss():
    path = str(Path(os.environ["CLIP_ITALIAN_REAL_DATA"]) / "coco_it/captions.jsonl")
    items = list(Jsonl((path,)).read(path))
    assert len(items) == 43 and all(isinstance(item, Row) for item in items)
    assert items[0].image == "coco_it/images/000000000359.jpg" and len(items[0].captions) == 5
    assert (items[0].image_id, items[0].split) == ("359", "validation")
