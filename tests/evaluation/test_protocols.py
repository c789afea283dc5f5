"""Protocols on files made as they were published, with one tiny photo under every name."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from clip_italian.collection import Collection
from clip_italian.config import ConfigError
from clip_italian.evaluation import protocols
from clip_italian.evaluation.protocols import PROTOCOLS, XM3600_LANGUAGES, open_protocol
from tests.evaluation.test_folders import BLUE, RED, write

REAL = Path(os.environ.get("CLIP_ITALIAN_REAL_DATA", ""))
needs_real_data = pytest.mark.skipif(
    "CLIP_ITALIAN_REAL_DATA" not in os.environ, reason="no real data at hand"
)


def photos(folder, names, data=RED):
    """One file under many names."""
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / "any"
    first.write_bytes(data)
    for name in names:
        os.link(first, folder / name)


def val2014(numbers):
    return [f"COCO_val2014_{number:012}.jpg" for number in numbers]


def annotation(place):
    """308 images in turn, from 307 down; ids are texts and integers in turn."""
    image = 307 - place % 308
    return {"image_id": image if place % 2 else str(image), "caption": f" una  foto {place}\n"}


def write_mscoco(eval_dir, annotations=None, name="captions_ita_devset_validated.json"):
    annotations = list(map(annotation, range(1541))) if annotations is None else annotations
    write(eval_dir / "mscoco_it", {name: json.dumps({"annotations": annotations})})


@pytest.fixture
def mscoco(tmp_path):
    write_mscoco(tmp_path)
    photos(tmp_path / "coco" / "val2014", val2014(range(308)))
    return tmp_path


def test_mscoco_it_puts_captions_of_an_image_side_by_side(mscoco):
    found = open_protocol("mscoco_it_dev", mscoco)
    assert (found.name, found.protocol, found.language) == ("mscoco_it_dev",) * 2 + ("it",)
    assert found.image_keys == val2014(range(307, -1, -1))
    assert len(found.captions) == 1541 and found.labels is None
    assert found.captions[:7] == [f"una foto {n}" for n in (0, 308, 616, 924, 1232, 1540, 1)]
    assert found.caption_image[:7].tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert found.caption_image[-1] == 307
    assert found.read(np.array([3])) == [RED]


def test_mscoco_it_may_be_packed(mscoco):
    plain = open_protocol("mscoco_it_dev", mscoco)
    path = mscoco / "mscoco_it" / "captions_ita_devset_validated.json"
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    packed = open_protocol("mscoco_it_dev", mscoco)
    assert packed.captions == plain.captions and packed.fingerprint == plain.fingerprint


def test_photos_may_have_their_names_of_2017(mscoco):
    plain = open_protocol("mscoco_it_dev", mscoco)
    for photo in val2014(range(308)):
        number = int(photo[-7:-4])
        new = mscoco / "coco" / ("val2017" if number % 10 == 0 else "train2017")
        new.mkdir(exist_ok=True)
        (mscoco / "coco" / "val2014" / photo).rename(new / f"{number:012}.jpg")
    moved = open_protocol("mscoco_it_dev", mscoco)
    assert moved.image_keys == plain.image_keys and moved.fingerprint == plain.fingerprint


def test_missing_photos_are_counted_and_named(mscoco):
    for photo in val2014([300, 301, 7, 9]):
        (mscoco / "coco" / "val2014" / photo).unlink()
    first = ", ".join(val2014([301, 300, 9]))
    with pytest.raises(ConfigError, match=rf"4 of 308 images are missing: {first}, \.\.\.; looked"):
        open_protocol("mscoco_it_dev", mscoco)


def test_the_fingerprint_covers_photos_and_captions(mscoco):
    prints = {open_protocol("mscoco_it_dev", mscoco).fingerprint}
    write_mscoco(mscoco, [annotation(0) | {"caption": "x"}, *map(annotation, range(1, 1541))])
    prints.add(open_protocol("mscoco_it_dev", mscoco).fingerprint)
    photo = mscoco / "coco" / "val2014" / val2014([5])[0]
    photo.unlink()
    photo.write_bytes(BLUE)
    prints.add(open_protocol("mscoco_it_dev", mscoco).fingerprint)
    assert len(prints) == 3


def with_first(**changes):
    return [annotation(0) | changes, *map(annotation, range(1, 1541))]


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (with_first(image_id="3a"), "annotation 1: \"image_id\" is '3a', no COCO id"),
        (with_first(image_id=None), 'annotation 1: "image_id" is None'),
        (with_first(image_id=True), 'annotation 1: "image_id" is True'),
        (with_first(image_id=-3), 'annotation 1: "image_id" is -3'),
        (with_first(caption=" "), "annotation 1: caption ' ' is empty"),
        (with_first(caption=None), "annotation 1: caption None is empty or no text"),
        (["x"], 'annotation 1: "image_id" is None'),
        ({"x": 1}, 'no list "annotations"'),
        ([annotation(n) for n in range(1540)], "1,540 captions of 308 .* it has 1,541 of 308"),
        (with_first(image_id=308), "1,541 captions of 309 images"),
    ],
)
def test_another_file_than_the_published_one_is_refused(mscoco, annotations, message):
    write_mscoco(mscoco, annotations)
    with pytest.raises(ConfigError, match=f"captions_ita_devset_validated.json.*{message}"):
        open_protocol("mscoco_it_dev", mscoco)


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000])
def test_broken_files_are_refused(mscoco, data):
    write(mscoco / "mscoco_it", {"captions_ita_devset_validated.json": data})
    with pytest.raises(ConfigError, match=r"captions_ita_devset_validated.json: broken"):
        open_protocol("mscoco_it_dev", mscoco)


def test_a_broken_archive_is_refused(tmp_path):
    for data in (b"no gzip", gzip.compress(b"{}" * 99)[:-9]):
        write(tmp_path / "mscoco_it", {"captions_ita_testset_validated.json.gz": data})
        with pytest.raises(ConfigError, match=r"validated.json.gz: broken"):
            open_protocol("mscoco_it_test", tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no protocol 'xtd'; .*xtd10_clean, xm3600_p1"):
        open_protocol("xtd", tmp_path)
    with pytest.raises(ConfigError, match="'de' is not allowed: mscoco_it_dev has it"):
        open_protocol("mscoco_it_dev", tmp_path, language="de")
    with pytest.raises(ConfigError, match=r"no file at .*devset_unvalidated.json', with .gz"):
        open_protocol("mscoco_it_dev_unvalidated", tmp_path)
    with pytest.raises(ConfigError, match=r"no file at .*test_image_names.txt"):
        open_protocol("xtd10", tmp_path)
    with pytest.raises(ConfigError, match=r"no file at .*captions.jsonl"):
        open_protocol("xm3600_p2", tmp_path)
    with pytest.raises(ConfigError, match=r"no folder .*imagenet"):
        open_protocol("imagenet", tmp_path)


# Every fifth photo is one of val2014.
XTD10 = [f"COCO_{'train' if n % 5 else 'val'}2014_{n:012}.jpg" for n in range(1000, 0, -1)]


@pytest.fixture
def xtd10(tmp_path):
    write_xtd10(tmp_path)
    for part in ("train2014", "val2014"):
        photos(tmp_path / "coco" / part, [name for name in XTD10 if part in name])
    return tmp_path


def write_xtd10(eval_dir, names=XTD10, captions=1000, captions_file="XTD10/test_1kcaptions_it.txt"):
    texts = "\n".join(f"didascalia {n}" for n in range(captions))
    index = {"XTD10/test_image_names.txt": "\n".join(names) + "\n", captions_file: texts}
    write(eval_dir / "xtd10", index)


def test_xtd10_has_one_caption_for_each_photo(xtd10):
    found = open_protocol("xtd10", xtd10)
    assert (found.name, found.protocol, found.language) == ("xtd10_it", "xtd10", "it")
    assert found.image_keys == XTD10
    assert found.captions == [f"didascalia {n}" for n in range(1000)]
    assert found.caption_image.tolist() == list(range(1000))


def test_the_clean_subset_of_xtd10_is_val2014(xtd10):
    for photo in (xtd10 / "coco" / "train2014").iterdir():
        photo.unlink()
    found = open_protocol("xtd10_clean", xtd10)
    assert (found.name, found.protocol) == ("xtd10_it_clean", "xtd10_clean")
    assert found.image_keys == XTD10[::5] and all("val2014" in key for key in found.image_keys)
    assert found.captions == [f"didascalia {n}" for n in range(0, 1000, 5)]
    with pytest.raises(ConfigError, match="800 of 1,000 images are missing: COCO_train2014"):
        open_protocol("xtd10", xtd10)


def test_xtd10_in_other_languages(xtd10):
    write_xtd10(xtd10, captions_file="STAIR/test_1kcaptions_jp.txt")
    write_xtd10(xtd10, captions_file="MIC/test_1kcaptions_de.txt")
    assert open_protocol("xtd10_clean", xtd10, language="ja").name == "xtd10_ja_clean"
    assert open_protocol("xtd10", xtd10, language="de").language == "de"
    with pytest.raises(ConfigError, match=r"no file at .*XTD10/test_1kcaptions_ko.txt"):
        open_protocol("xtd10", xtd10, language="ko")
    with pytest.raises(ConfigError, match="'jp' is not allowed: xtd10 has de, .*, zh, ja"):
        open_protocol("xtd10", xtd10, language="jp")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"captions": 999}, "test_1kcaptions_it.txt: 999 captions for the 1,000 of"),
        ({"captions": 998, "names": XTD10[:998]}, "998 captions of 998 images; as published"),
        ({"names": ["1.jpg", *XTD10[1:]]}, "line 1: '1.jpg' is no new photo of COCO 2014"),
        ({"names": [XTD10[1], *XTD10[1:]]}, "line 2: .* is no new photo of COCO 2014"),
        ({"names": [XTD10[0].replace("val", "train"), *XTD10[1:]]}, "199 captions of 199 images"),
    ],
)
def test_another_xtd10_is_refused(xtd10, files, message):
    write_xtd10(xtd10, **files)
    with pytest.raises(ConfigError, match=message):
        open_protocol("xtd10_clean", xtd10)


def test_an_empty_caption_of_xtd10_is_refused(xtd10):
    texts = "\n".join(["uno", " ", *map(str, range(998))])
    write(xtd10 / "xtd10", {"XTD10/test_1kcaptions_it.txt": texts})
    with pytest.raises(ConfigError, match="test_1kcaptions_it.txt, line 2: caption '' is empty"):
        open_protocol("xtd10", xtd10)


def xm3600_row(number):
    """1,271 images with three captions, the others with two: 8,471."""
    captions = [f"didascalia {number} {letter}" for letter in "abc"[: 2 + (number < 1271)]]
    return {"image/key": f"{number:016x}", "image/locale": "it", "it": {"caption": captions}}


def write_xm3600(eval_dir, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write(eval_dir / "xm3600", {"captions.jsonl": text})


@pytest.fixture(scope="module")
def xm3600(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xm3600")
    write_xm3600(folder, map(xm3600_row, range(3600)))
    photos(folder / "xm3600" / "images", [f"{number:016x}.jpg" for number in range(3600)])
    return folder


def test_xm3600_p1_takes_the_first_captions(xm3600, capsys):
    found = open_protocol("xm3600_p1", xm3600)
    assert (found.name, found.protocol, found.language) == ("xm3600_it_p1", "xm3600_p1", "it")
    assert found.image_keys == [f"{number:016x}" for number in range(3600)]
    assert found.captions == [f"didascalia {number} a" for number in range(3600)]
    assert found.caption_image.tolist() == list(range(3600))
    assert "reading xm3600_it_p1: 100%" in capsys.readouterr().err  # so many files take a while


def test_xm3600_p2_takes_all_captions(xm3600):
    found = open_protocol("xm3600_p2", xm3600)
    assert (found.name, found.protocol, len(found)) == ("xm3600_it_p2", "xm3600_p2", 3600)
    assert len(found.captions) == 8471 and found.captions[2:4] == [
        "didascalia 0 c",
        "didascalia 1 a",
    ]
    assert found.caption_image[:4].tolist() == [0, 0, 0, 1]
    assert found.caption_image[-1] == 3599


def test_xm3600_has_36_languages(xm3600):
    assert len(set(XM3600_LANGUAGES)) == 36
    with pytest.raises(ConfigError, match=r"'xx' is not allowed: xm3600 has ar, bn, .*, vi, zh"):
        open_protocol("xm3600_p1", xm3600, language="xx")
    with pytest.raises(ConfigError, match=r"captions.jsonl, line 1, quz: captions are None"):
        open_protocol("xm3600_p1", xm3600, language="quz")


def test_xm3600_in_another_language_needs_all_images_only(xm3600, tmp_path):
    (tmp_path / "xm3600").mkdir()
    (tmp_path / "xm3600" / "images").symlink_to(xm3600 / "xm3600" / "images")
    rows = [xm3600_row(number) for number in range(3600)]
    for row in rows:
        row["hu"] = {"caption": row.pop("it")["caption"][:2]}
    write_xm3600(tmp_path, rows)
    found = open_protocol("xm3600_p2", tmp_path, language="hu")
    assert (found.name, found.language, len(found.captions)) == ("xm3600_hu_p2", "hu", 7200)
    write_xm3600(tmp_path, rows[1:])
    with pytest.raises(ConfigError, match="of 3,599 images; as published it has .* of 3,600"):
        open_protocol("xm3600_p2", tmp_path, language="hu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image/key": 3}, 'line 2: "image/key" is 3, no new key'),
        ({"image/key": "../x"}, "line 2: \"image/key\" is '../x', no new key"),
        ({"image/key": f"{0:016x}"}, 'line 2: "image/key" is .*, no new key'),
        ({"it": {"caption": ["a", ""]}}, "line 2, it: caption '' is empty"),
        ({"it": {"caption": []}}, r"line 2, it: captions are \[\]"),
        ({"it": ["a"]}, "line 2, it: captions are None"),
        ({"it": {"caption": ["a"]}}, "8,469 captions of 3,600 images; as published it has 8,471"),
        ({"image/key": "d"}, "1 of 3,600 images are missing: d; looked in .*xm3600/images"),
    ],
)
def test_another_xm3600_is_refused(xm3600, tmp_path, change, message):
    (tmp_path / "xm3600").mkdir()
    (tmp_path / "xm3600" / "images").symlink_to(xm3600 / "xm3600" / "images")
    rows = list(map(xm3600_row, range(3600)))
    write_xm3600(tmp_path, [rows[0], rows[1] | change, *rows[2:]])
    with pytest.raises(ConfigError, match=message):
        open_protocol("xm3600_p1", tmp_path)


def test_imagenet_is_whole(tmp_path, monkeypatch):
    write(tmp_path / "imagenet", {"n01440764/ILSVRC2012_val_00000293.JPEG": RED})
    with pytest.raises(ConfigError, match=r"1 images of 1 classes; the validation set has 50,000"):
        open_protocol("imagenet", tmp_path)
    whole = Collection("imagenet", "folder", range(50_000), list, "0", class_ids=range(1000))
    monkeypatch.setattr(protocols, "open_folder", lambda path, name: whole)
    found = open_protocol("imagenet", tmp_path, language="hu")
    assert (found.name, found.protocol, found.language) == ("imagenet", "imagenet", "hu")


def test_names_and_protocols_agree():
    assert list(PROTOCOLS) == [
        "mscoco_it_dev_unvalidated", "mscoco_it_dev", "mscoco_it_test", "xtd10", "xtd10_clean",
        "xm3600_p1", "xm3600_p2", "imagenet",
    ]  # fmt: skip


@pytest.mark.real_data
@needs_real_data
@pytest.mark.parametrize(
    ("name", "images", "captions"),
    [("mscoco_it_dev_unvalidated", 1696, 8486), ("mscoco_it_dev", 308, 1541)],
)
def test_the_published_files_have_the_published_counts(tmp_path, name, images, captions):
    (tmp_path / "mscoco_it").symlink_to(REAL / "raw" / "mscoco-it")
    part = "devset_unvalidated" if images == 1696 else "devset_validated"
    packed = REAL / "raw" / "mscoco-it" / f"captions_ita_{part}.json.gz"
    listed = json.loads(gzip.decompress(packed.read_bytes()))["images"]
    photos(tmp_path / "coco" / "val2014", [image["file_name"] for image in listed])
    found = open_protocol(name, tmp_path)
    assert (len(found), len(found.captions)) == (images, captions)
    assert np.all(np.diff(found.caption_image) >= 0)
    assert len(np.unique(found.caption_image)) == images
