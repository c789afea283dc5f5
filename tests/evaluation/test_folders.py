"""Labelled folders and JSON lines, in folders made for each test."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from clip_italian.config import ConfigError
from clip_italian.evaluation.folders import open_folder, open_jsonl


def picture(colour, form="JPEG", mode="RGB", size=(8, 6)):
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, form)
    return file.getvalue()


def write(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


RED, BLUE = picture("red"), picture("blue")
CLASSES = {
    "n02/b.JPEG": RED,
    "n02/deeper/a.png": picture("green", "PNG"),
    "n01/z.WebP": picture("white", "WEBP"),
    "n01/a.jpg": BLUE,
    "n01/.DS_Store": b"x",
    ".cache/x.jpg": RED,
    "README.txt": "what this is",
}


def test_each_folder_is_a_class(tmp_path):
    found = open_folder(write(tmp_path / "my photos", CLASSES))
    assert (found.name, found.protocol, len(found)) == ("my_photos", "folder", 4)
    assert found.image_keys == ["n01/a.jpg", "n01/z.WebP", "n02/b.JPEG", "n02/deeper/a.png"]
    assert found.labels.tolist() == [0, 0, 1, 1] and found.labels.dtype == np.int32
    assert found.class_ids == ["n01", "n02"]
    assert found.captions == [] and found.caption_image.shape == (0,)
    assert found.read(np.array([2, 0, 2])) == [RED, BLUE, RED]


def test_a_name_may_be_given(tmp_path):
    assert open_folder(write(tmp_path, CLASSES), name="mine").name == "mine"


def test_the_fingerprint_tells_contents_apart_and_not_places(tmp_path):
    first = write(tmp_path / "a", CLASSES)
    shutil.copytree(first, tmp_path / "b")
    assert open_folder(first).fingerprint == open_folder(tmp_path / "b").fingerprint
    variants = [
        CLASSES,
        CLASSES | {"n01/a.jpg": RED},
        {name.replace("n02", "n03"): data for name, data in CLASSES.items()},
        {name.replace("a.jpg", "b.jpg"): data for name, data in CLASSES.items()},
    ]
    prints = [open_folder(write(tmp_path / str(i), v)).fingerprint for i, v in enumerate(variants)]
    assert len(set(prints)) == 4 and all(len(found) == 64 for found in prints)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"n03/.keep": ""}, "1 classes have no images: n03"),
        ({"loose.png": RED}, "1 images lie in no class folder: loose.png; .* table of labels"),
        ({"n01/c.gif": RED}, "1 files in class folders are no .jpg, .*: n01/c.gif"),
    ],
)
def test_what_fits_nowhere_is_refused(tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        open_folder(write(tmp_path, CLASSES | more))


def test_no_folder_and_no_images_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no folder of labelled images at .*none"):
        open_folder(tmp_path / "none")
    with pytest.raises(ConfigError, match="no images"):
        open_folder(tmp_path)


FLAT = {"val_2.JPEG": BLUE, "val_1.JPEG": RED, "val_3.JPEG": RED}
KAGGLE = (
    "ImageId,PredictionString\nval_3,n09 1 2 3 4 n09 5 6 7 8 \n"
    "val_1,n09 1 2 3 4 \nval_2,n05 1 2 3 4 \n"
)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("LOC_val_solution.csv", KAGGLE),
        ("labels.csv", "file,class_id\r\nval_1.JPEG,n09\r\nval_2.JPEG,n05\r\nval_3.JPEG,n09\r\n"),
        ("labels.tsv", "val_2\tn05\nval_1\tn09\n\nval_3.JPEG\tn09"),
        ("../elsewhere.csv", "val_2,n05\nval_1,n09\nval_3,n09"),
    ],
)
def test_a_table_gives_the_classes(tmp_path, table, text):
    folder = write(tmp_path / "val", FLAT | {table: text})
    found = open_folder(folder, labels=folder / table if ".." in table else "")
    assert found.image_keys == ["val_1.JPEG", "val_2.JPEG", "val_3.JPEG"]
    assert found.class_ids == ["n05", "n09"]
    assert found.labels.tolist() == [1, 0, 1]


def test_class_ids_of_a_plain_table_may_have_spaces(tmp_path):
    text = "val_1,squalo bianco\nval_2,tinca\nval_3,tinca\n"
    assert open_folder(write(tmp_path, FLAT | {"labels.csv": text})).class_ids == [
        "squalo bianco",
        "tinca",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (KAGGLE + "val_4,n05 1", "1 of 4 images are missing: val_4; looked in the folder that"),
        ("val_1,n05\nval_2,n05\n", "no class for 1 of 3 images: val_3.JPEG"),
        ("val_1,n05\nval_1.JPEG,n09\n", "line 2: 'val_1.JPEG' has a class already"),
        ("val_1,n05\nval_2\n", r"line 2: \['val_2'\] is not image and class id"),
        ("val_1,n05\nval_2, \n", "line 2: .* is not image and class id"),
    ],
)
def test_table_and_images_must_agree(tmp_path, text, message):
    folder = write(tmp_path, FLAT | {"table.csv": text})
    with pytest.raises(ConfigError, match=message):
        open_folder(folder, labels=folder / "table.csv")


def test_a_table_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no file at .*table.csv"):
        open_folder(write(tmp_path, FLAT), labels=tmp_path / "table.csv")


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_lines_with_captions_and_classes(tmp_path):
    rows = [
        {"image": "b/2.png", "captions": [" un  gatto\n", "il gatto"], "class_id": "gatto"},
        {"image": str(tmp_path / "1.jpg"), "captions": ["un cane"], "class_id": "cane", "x": 1},
    ]
    files = {"b/2.png": picture("red", "PNG"), "1.jpg": BLUE, "my test.jsonl": lines(*rows) + "\n"}
    found = open_jsonl(write(tmp_path, files) / "my test.jsonl")
    assert (found.name, found.protocol, found.language) == ("my_test", "jsonl", "it")
    assert found.image_keys == ["b/2.png", str(tmp_path / "1.jpg")]
    assert found.captions == ["un gatto", "il gatto", "un cane"]
    assert found.caption_image.tolist() == [0, 0, 1] and found.caption_image.dtype == np.int32
    assert found.class_ids == ["cane", "gatto"] and found.labels.tolist() == [1, 0]
    assert found.read(np.array([1])) == [BLUE]


def test_json_lines_with_either(tmp_path):
    write(tmp_path, {"a.jpg": RED, "b.jpg": BLUE})
    write(tmp_path, {"t.jsonl": lines({"image": "a.jpg", "captions": ["Mače"]})})
    write(tmp_path, {"l.jsonl": lines({"image": "b.jpg", "class_id": "x"})})
    texts = open_jsonl(tmp_path / "t.jsonl", language="hr")
    assert texts.labels is None and texts.captions == ["Mače"] and texts.language == "hr"
    assert open_jsonl(tmp_path / "l.jsonl").labels.tolist() == [0]


A = {"image": "a.jpg", "captions": ["un gatto"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lines(A)[:-3], "line 1: no JSON"),
        ("[1]\n", r"line 1: no JSON object but \[1\]"),
        (lines({"captions": ["un gatto"]}), 'line 1: "image" is None'),
        (lines(A, A), "line 2: \"image\" is 'a.jpg'; give a path, each only once"),
        (lines(A | {"captions": []}), r"line 1: captions are \[\]"),
        (lines(A | {"captions": "un gatto"}), "line 1: captions are 'un gatto'; give a list"),
        (lines(A | {"captions": ["un gatto", " \n"]}), "line 1: caption ' .n' is empty"),
        (lines(A | {"captions": [3]}), "line 1: caption 3 is empty or no text"),
        (lines(A | {"class_id": 3}), 'line 1: "class_id" is 3'),
        (lines({"image": "a.jpg"}), 'line 1: needs "captions" or "class_id"'),
        (lines(A, {"image": "b.jpg", "class_id": "x"}), "line 2: all lines need the same"),
        (lines(A | {"class_id": "x"}, A | {"image": "b.jpg"}), "line 2: all lines need the same"),
        (lines({"image": "b.jpg", "class_id": "x"}, A), "line 2: all lines need the same"),
        (lines({"image": "b.jpg", "class_id": "x"}, A | {"class_id": "x"}), "line 2: all lines"),
        ("\n", "no lines"),
        (lines(A, A | {"image": "c.jpg"}), "1 of 2 images are missing: c.jpg; looked in"),
        (b"\xff\xfe", "no UTF-8 text"),
    ],
)
def test_broken_json_lines_are_refused(tmp_path, text, message):
    write(tmp_path, {"a.jpg": RED, "b.jpg": BLUE, "t.jsonl": text})
    with pytest.raises(ConfigError, match=message):
        open_jsonl(tmp_path / "t.jsonl")


def test_the_fingerprint_covers_captions_and_classes(tmp_path):
    write(tmp_path, {"a.jpg": RED, "b.jpg": BLUE})
    prints = set()
    for captions, classes in (
        ([["x"], ["y"]], "pq"),
        ([["x"], ["z"]], "pq"),
        ([["x"], ["y"]], "qp"),
        ([["x"], ["y"]], "pr"),
        ([["x", "y"], ["y"]], "pq"),
    ):
        rows = [
            {"image": image, "captions": own, "class_id": class_id}
            for image, own, class_id in zip(("a.jpg", "b.jpg"), captions, classes, strict=True)
        ]
        prints.add(open_jsonl(write(tmp_path, {"t.jsonl": lines(*rows)}) / "t.jsonl").fingerprint)
    assert len(prints) == 5


def test_captions_are_composed(tmp_path):
    row = {"image": "a.jpg", "captions": ["perche\u0301"]}
    write(tmp_path, {"a.jpg": RED, "t.jsonl": lines(row)})
    assert open_jsonl(tmp_path / "t.jsonl").captions == ["perch\u00e9"]


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparent_parts_become_white(tmp_path, form):
    clear = picture((0, 0, 0, 0), form, "RGBA")
    opaque = picture("blue", form)
    broken = b"no picture"
    found = open_folder(write(tmp_path, {"a/1.png": clear, "a/2.png": opaque, "a/3.png": broken}))
    white, same, unread = found.read(np.arange(3))
    pixels = np.asarray(Image.open(io.BytesIO(white)))
    assert pixels.shape == (6, 8, 3) and pixels.min() == 255
    assert same == opaque and unread == broken
