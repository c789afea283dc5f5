import gzip
import io
import json

import numpy as np
import pytest
from PIL import Image

from clip_italian.config import ConfigError
from clip_italian.data.records import Record, write_records
from data_prep.guard import hash_pictures, load_ids, pictures_of, plain_id
from data_prep.images import prepare_image
from data_prep.store import read_json, read_table


@pytest.mark.parametrize(
    ("found", "plain"),
    [
        ("359", "359"),
        ("000000000359.jpg", "359"),
        ("COCO_val2014_000000000359.jpg", "359"),
        ("val2014/COCO_val2014_000000000359.JPG", "359"),
        ("https://example.org/a/7.png", "https://example.org/a/7.png"),
        ("a359", "a359"),
        ("0", "0"),
    ],
)
def test_coco_ids_have_many_spellings(found, plain):
    assert plain_id(found) == plain


def test_ids_come_from_coco_json_json_lines_and_plain_text(tmp_path):
    coco = {
        "images": [{"id": 1}, {"id": "2"}],
        "annotations": [{"image_id": "00003", "caption": ""}],
    }
    (tmp_path / "coco.json.gz").write_bytes(gzip.compress(json.dumps(coco).encode()))
    (tmp_path / "rows.jsonl").write_text('{"image_id": 4}\n\n{"image_id": "x"}\n')
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfCOCO_train2014_000000000005.jpg\r\n6\n")
    (tmp_path / "list.json").write_text('[\n  "COCO_val2014_000000000007.jpg",\n  8\n]')
    assert load_ids(str(tmp_path / "list.json")) == {"7", "8"}
    assert load_ids(str(tmp_path / "coco.json.gz")) == {"1", "2", "3"}
    assert load_ids(str(tmp_path / "rows.jsonl")) == {"4", "x"}
    assert load_ids(str(tmp_path / "names.txt")) == {"5", "6"}


@pytest.mark.parametrize(
    "contents", [None, b"", b"\n\n", b"\xff\xfe\x00", b'{"id": 3}\n', b"[]", b'[{"id": 3}]']
)
def test_a_file_without_ids_is_refused(tmp_path, contents):
    path = tmp_path / "ids.txt"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(ConfigError, match="guard_ids: .*ids.txt"):
        load_ids(str(path))


def picture(level):
    file = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), level, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def test_pictures_of_a_folder_are_hashed_as_training_pictures_are(tmp_path):
    folder = tmp_path / "xtd"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "b.JPG").write_bytes(picture(200))
    (folder / "a.jpg").write_bytes(picture(10))
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not looked at")
    files = pictures_of(str(folder))
    assert [path.rpartition("/")[2] for path in files] == ["a.jpg", "broken.png", "b.JPG"]
    hash_pictures(files, tmp_path / "0", "xtd")
    rows = read_table(tmp_path / "0" / "hashes.parquet")
    expected = [prepare_image(picture(level)) for level in (10, 200)]
    assert rows == [
        {"name": "xtd", "image_hash": one.image_hash, "thumbnail": one.thumbnail}
        for one in expected
    ]
    counts = read_json(tmp_path / "0" / "counts.json")
    assert counts["pictures"] == 2 and "not an image" in counts["bad"][0]


def test_links_of_a_guard_may_lead_anywhere(tmp_path):
    (tmp_path / "xtd").mkdir()
    (tmp_path / "blob").write_bytes(picture(9))
    (tmp_path / "xtd" / "a.jpg").symlink_to(tmp_path / "blob")
    hash_pictures(pictures_of(str(tmp_path / "xtd")), tmp_path / "0", "xtd")
    assert read_json(tmp_path / "0" / "counts.json") == {"pictures": 1, "bad": []}


def test_records_guard_too(tmp_path):
    made = [Record(picture(n), [str(n)], "dev", str(n)) for n in (5, 6, 7)]
    write_records(tmp_path / "dev", {"train": made[:1], "validation": made[1:]}, name="dev")
    files = pictures_of(str(tmp_path / "dev"))
    hash_pictures(files, tmp_path / "0", "dev")
    assert len(read_table(tmp_path / "0" / "hashes.parquet")) == 3


def test_a_folder_without_pictures_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="guard_pictures: "):
            pictures_of(str(path))
