import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_italian.data.records import open_split, parse_record
from data_prep.images import difference_hash
from data_prep.jsonl import clean_captions, import_jsonl, split_by_hash


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    for number in range(8):
        pixels = np.full((30, 40, 3), 30 * number, np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
    return root


def row(number, **fields):
    return {"image": f"images/{number}.png", "captions": ["un gatto"], "split": "train", **fields}


def run(tmp_path, root, rows, **options):
    file = tmp_path / "rows.jsonl"
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in rows]
    file.write_bytes(b"\n".join(lines) + b"\n")
    return import_jsonl(file, tmp_path / "out", "gatti", root=root, **options)


def read(tmp_path, split):
    file = open_split(tmp_path / "out", "gatti", split)
    return [parse_record(data) for data in file.read(range(len(file)))]


def test_rows_become_records(tmp_path, root):
    full = row(
        1,
        captions=["  un\tgatto \n nero ", "", "e\u0300 Nero"],
        source="wit",
        image_id=17,
        url="https://example.org",
        license="CC0",
        original_captions=["a cat"],
        translator="deepl",
    )
    old = {"image_path": "images/2.png", "captions": ["un cane"], "split": "train"}
    both = row(3, image_path="elsewhere/3.png")  # the rows of COCO name the original's path too
    summary = run(tmp_path, root, [full, old, both], size=15)
    assert summary.records == {"train": 3, "validation": 0}
    first, second, third = read(tmp_path, "train")
    assert first.captions == ("un gatto nero", "è Nero")
    assert (first.source, first.image_id) == ("wit", "17")
    assert (first.url, first.license, first.translator) == ("https://example.org", "CC0", "deepl")
    assert first.original_captions == ("a cat",)
    image = Image.open(io.BytesIO(first.image))
    assert image.size == (20, 15) and image.getpixel((3, 3)) == (30, 30, 30)
    assert first.image_hash == difference_hash(image)
    assert (second.source, second.image_id) == ("gatti", "images/2.png")
    assert (third.image_id, third.url, third.original_captions) == ("images/3.png", "", ())


def test_named_splits_are_kept(tmp_path, root):
    names = ["train", "validation", "val", "dev", "test", "Test"]
    rows = [row(number, split=name) for number, name in enumerate(names)]
    assert run(tmp_path, root, rows).records == {"train": 1, "validation": 5}
    assert [r.image_id for r in read(tmp_path, "validation")] == [
        f"images/{n}.png" for n in range(1, 6)
    ]


def test_unnamed_splits_follow_the_bytes_of_the_image(tmp_path, root):
    images = [(root / "images" / f"{n}.png").read_bytes() for n in range(8)]
    expected = {
        name: [i for i in range(8) if split_by_hash(images[i]) == name]
        for name in ("train", "validation")
    }
    rows = [{key: v for key, v in row(n).items() if key != "split"} for n in range(7)]
    run(tmp_path, root, [*rows, row(7, split="extra")])
    assert [r.image_id for r in read(tmp_path, "train")] == [
        f"images/{n}.png" for n in expected["train"]
    ]
    drawn = sum(split_by_hash(number.to_bytes(4)) == "validation" for number in range(20_000))
    assert 900 < drawn < 1100  # 5%


def test_bad_rows_are_set_aside_and_counts_add_up(tmp_path, root):
    (root / "images" / "page.jpg").write_text("<html>")
    (root / "images" / "half.png").write_bytes((root / "images" / "1.png").read_bytes()[:60])
    (tmp_path / "secret.png").write_bytes((root / "images" / "1.png").read_bytes())
    os.symlink(tmp_path / "secret.png", root / "images" / "link.png")
    rows = [
        row(0),
        b"{not json",
        b"[1, 2]",
        b'{"image": "\xff"}',
        b'{"image": "images/1.png", "captions": ["\\ud800"]}',
        b"[" * 100_000,
        b"",
        row(1, captions=[]),
        row(1, captions=[" "]),
        row(1, captions="un gatto"),
        row(1, captions=["un gatto", 3]),
        {"captions": ["un gatto"]},
        row(1, image=7),
        row(1, image="images/none.png"),
        row(1, image="images"),
        row(1, image="../secret.png"),
        row(1, image=str(tmp_path / "secret.png")),
        row(1, image="images/link.png"),
        row(1, image="images/\0.png"),
        row(1, image="x" * 5000),
        row(1, image="images/page.jpg"),
        row(1, image="images/half.png", split="test"),
        row(0),
        row(2, split="dev"),
    ]
    summary = run(tmp_path, root, rows)
    assert (summary.lines, summary.blank) == (24, 1)
    assert summary.records == {"train": 1, "validation": 1}
    assert summary.rejects == {
        "bad JSON": 2,
        "not a JSON object": 1,
        "bad Unicode": 2,
        "no caption": 2,
        "captions are not a list of texts": 2,
        "no image path": 2,
        "image missing": 2,
        "image path outside root": 3,
        "image cannot be read": 2,
        "not an image": 1,
        "broken image": 1,
        "image_id seen before": 1,
    }
    assert summary.blank + 2 + sum(summary.rejects.values()) == 24
    listed = [json.loads(line) for line in summary.rejects_file.read_text().splitlines()]
    assert [entry["line"] for entry in listed] == [*range(2, 7), *range(8, 24)]
    assert listed[0] == {"file": str(tmp_path / "rows.jsonl"), "line": 2, "reason": "bad JSON"}
    text = str(summary)
    assert "24 lines" in text and "3 set aside: image path outside root" in text
    assert text.endswith(f"listed in {summary.rejects_file}")


def test_a_clean_import_leaves_no_rejects_and_replaces_an_older_one(tmp_path, root):
    with pytest.raises(ValueError, match="no records"):
        run(tmp_path, root, [b"{"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gatti.rejects.jsonl"]
    summary = run(tmp_path, root, [b"\xef\xbb\xbf" + json.dumps(row(1)).encode()])
    assert summary.records["train"] == 1 and not summary.rejects_file.exists()
    assert "set aside" not in str(summary)


def test_captions_keep_their_case_and_marks():
    assert clean_captions(["L\u2019asterisco  A SINISTRA."]) == ["L’asterisco A SINISTRA."]


@pytest.mark.real_data
@pytest.mark.skipif("CLIP_ITALIAN_REAL_DATA" not in os.environ, reason="no real data at hand")
def test_real_rows_import_without_loss(tmp_path):
    root = Path(os.environ["CLIP_ITALIAN_REAL_DATA"])
    summary = import_jsonl(root / "coco_it/captions.jsonl", tmp_path, "coco_it", root=root)
    assert summary.rejects == {} and summary.lines == sum(summary.records.values()) > 0
