import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from clip_italian.config import ConfigError
from data_prep.mscoco_it import MscocoIt, plain_number
from data_prep.rows import Reject, Row
from tests.data_prep.hostile import entries

IMAGES = [
    {"id": 9, "file_name": "COCO_val2014_000000000009.jpg", "license": 4, "url": "http://f.org/9"},
    {"id": "12", "file_name": "COCO_train2014_000000000012.jpg", "license": 77},
    {"id": 30, "file_name": "COCO_val2014_000000000030.jpg"},
    {"id": 41, "file_name": "odd.png"},
    {"id": 50, "file_name": "COCO_val2014_000000000050.jpg"},
]
LICENSES = [{"id": 4, "name": "Attribution License", "url": "http://l.org"}]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "coco"
    for name in [
        "val2014/COCO_val2014_000000000009.jpg", "train2017/000000000012.jpg", "odd.png",
        "COCO_val2014_000000000050.jpg", "COCO_train2014_000000000061.jpg",
    ]:  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def read(tmp_path, photos, content, **flags):
    path = tmp_path / "captions.json"
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(data)
    source = MscocoIt((str(path),), str(photos), **flags)
    return list(source.read(*source.inputs()))


def caption(image_id, text):
    return {"image_id": image_id, "id": 1, "caption": text}


def test_captions_are_grouped_by_photo(tmp_path, photos):
    notes = [
        caption("12", "Due gatti. "),
        caption(9, "un cane"),
        caption(12, "due gatti"),
        caption("000000000009", "un cane"),
        caption(61, "un asino"),
        caption("41", "un pesce"),
    ]
    content = {"images": IMAGES[:2] + IMAGES[3:4], "annotations": notes, "licenses": LICENSES}
    machine = "MSCOCO-IT (machine translation)"
    expected = [
        Row(
            1, ("Due gatti. ", "due gatti"), str(photos / "train2017/000000000012.jpg"),
            image_id="12", translator=machine, entries=2,
        ),
        Row(
            2, ("un cane",), str(photos / "val2014/COCO_val2014_000000000009.jpg"),
            image_id="9", url="http://f.org/9", license="Attribution License",
            translator=machine, entries=2,
        ),
        Row(
            5, ("un asino",), str(photos / "COCO_train2014_000000000061.jpg"), image_id="61",
            translator=machine,
        ),
        Row(6, ("un pesce",), str(photos / "odd.png"), image_id="41", translator=machine),
    ]  # fmt: skip
    assert read(tmp_path, photos, content) == expected
    packed = gzip.compress(b"\xef\xbb\xbf" + json.dumps(content).encode())
    items = read(tmp_path, photos, packed, split="validation", translated_by="someone")
    assert [(item.image_id, item.split, item.translator) for item in items] == [
        (number, "validation", "someone") for number in ("12", "9", "61", "41")
    ]


def test_links_to_photos_elsewhere_are_found(tmp_path, photos):
    (tmp_path / "links").mkdir()
    os.symlink(photos / "val2014", tmp_path / "links" / "val2014")
    items = read(tmp_path, tmp_path / "links", {"annotations": [caption(9, "un cane")]})
    assert items[0].image == str(tmp_path / "links/val2014/COCO_val2014_000000000009.jpg")


def test_every_caption_is_accounted_for(tmp_path, photos):
    notes = [
        caption(9, "un cane"),
        caption(30, "un gatto"),
        caption(9, " "),
        caption(30, "due gatti"),
        caption(50, None),
        caption(9, 7),
        caption("x", "un bue"),
        caption(None, "un bue"),
        caption(True, "un bue"),
        "un bue",
        caption(9, "un \ud800"),
        caption(9, "un a\0"),
        caption(777, "un bue"),
        {"image_id": 9},
        caption("9" * 5000, "un bue"),
    ]
    items = read(tmp_path, photos, {"images": [*IMAGES, 3, {}], "annotations": notes})
    assert entries(items) == 15
    assert [(i.line, getattr(i, "reason", "row"), i.entries) for i in items] == [
        (3, "no caption", 1),
        (5, "no caption", 1),
        (6, "bad caption entry", 1),
        (7, "bad caption entry", 1),
        (8, "bad caption entry", 1),
        (9, "bad caption entry", 1),
        (10, "bad caption entry", 1),
        (11, "bad Unicode", 1),
        (12, "NUL character", 1),
        (14, "no caption", 1),
        (15, "bad caption entry", 1),
        (1, "row", 1),
        (2, "caption without image", 2),
        (13, "caption without image", 1),
        (2, "image without caption", 0),  # places in the list of images
        (4, "image without caption", 0),
    ]
    assert items[12].detail == "COCO_val2014_000000000030.jpg"
    assert items[13].detail == "000000000777.jpg"
    assert items[14].detail == "COCO_train2014_000000000012.jpg"


def test_files_that_cannot_be_read_are_one_reject(tmp_path, photos):
    packed = gzip.compress(json.dumps({"annotations": []}).encode())
    for content, reason in [
        (b"", "bad JSON"),
        (b"{", "bad JSON"),
        (b"[" * 100_000, "bad JSON"),
        (b'{"\xff": 1}', "bad UTF-8"),
        (b"[]", "not COCO captions"),
        (b'{"annotations": {}}', "not COCO captions"),
        (packed[:-9], "broken archive"),
        (packed[:12] + b"\xff" * 9 + packed[21:], "broken archive"),
    ]:
        assert read(tmp_path, photos, content) == [Reject(1, reason)]
    odd = {"annotations": [caption(9, "un cane")], "images": 3, "licenses": [4, {"id": []}]}
    assert len(read(tmp_path, photos, odd)) == 1


def test_flags_that_cannot_work(tmp_path, photos):
    with pytest.raises(ConfigError, match="images: no folder at 'none'"):
        MscocoIt((str(tmp_path),), "none").inputs()
    with pytest.raises(ConfigError, match="path: no file at"):
        MscocoIt((str(photos),), str(photos)).inputs()


def test_plain_number():
    values = [7, "7", "007", 0, True, -1, "-1", 7.0, "", "7 ", "٧", None, "9" * 19, [7]]
    assert [plain_number(value) for value in values] == [7, 7, 7, 0, *[None] * 10]


@pytest.mark.real_data
@pytest.mark.skipif("CLIP_ITALIAN_REAL_DATA" not in os.environ, reason="no real data at hand")
def test_the_retrieval_set_of_the_paper(tmp_path):
    root = Path(os.environ["CLIP_ITALIAN_REAL_DATA"])
    path = root / "raw/mscoco-it/captions_ita_devset_unvalidated.json.gz"
    content = json.loads(gzip.decompress(path.read_bytes()))
    for image in content["images"]:
        (tmp_path / image["file_name"]).touch()
    source = MscocoIt((str(path),), str(tmp_path), split="validation")
    items = list(source.read(*source.inputs()))
    assert Counter(map(type, items)) == {Row: 1696} and entries(items) == 8486
    first = items[0]
    assert first.image_id == "303550"
    assert first.license == "Attribution-NonCommercial-ShareAlike License"
    assert first.captions[0].startswith("Un gatto scontroso si siede")
    validated = MscocoIt((str(path).replace("unvalidated", "validated"),), str(tmp_path))
    items = list(validated.read(*validated.inputs()))
    assert entries(items) == 1541 and len({item.line for item in items}) == 308
    # With the few photos at hand, the rest is accounted for.
    source = MscocoIt((str(path),), str(root / "coco_it/images"))
    items = list(source.read(*source.inputs()))
    assert entries(items) == 8486
    reasons = Counter(getattr(item, "reason", "row") for item in items)
    assert reasons["row"] + reasons["caption without image"] == 1696 and reasons["row"] == 19
