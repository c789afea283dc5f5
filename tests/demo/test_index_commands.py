"""`clip-italian index` through the command line, with a tiny model."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from clip_italian import cli
from clip_italian.data.records import write_records
from clip_italian.demo import approximate
from clip_italian.demo.index import open_index
from clip_italian.demo.index_commands import default_folder
from clip_italian.hub.load import RunEncoder, load_model
from tests.data.conftest import record
from tests.demo.colours import encoded, write
from tests.hub.test_commands import CAPTIONS, make_run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, records, and a folder of pictures of all kinds."""
    folder = tmp_path_factory.mktemp("index")
    records = [record(number, captions=[text]) for number, text in enumerate(CAPTIONS)]
    write_records(folder / "a", {"train": records, "validation": records[:4]}, name="a")
    make_run(folder / "runs" / "tiny", folder)
    write(folder / "pictures", *range(12), size=(40, 50))
    pictures = folder / "pictures"
    (pictures / "jpeg.jpg").write_bytes(encoded(20, (300, 200), "JPEG"))
    (pictures / "webp.webp").write_bytes(encoded(21, (60, 60), "WEBP"))
    (pictures / "cmyk.jpg").write_bytes(saved(picture(22).convert("CMYK"), "JPEG"))
    (pictures / "moving.webp").write_bytes(
        saved(picture(23), "WEBP", save_all=True, append_images=[picture(24)])
    )
    (pictures / "deep.png").write_bytes(
        saved(Image.fromarray(np.full((40, 40), 50_000, np.uint16)), "PNG")
    )
    (pictures / "html.jpg").write_bytes(b"<html>no picture</html>")
    (pictures / "cut.jpg").write_bytes(encoded(25, (300, 300), "JPEG")[:-300])
    (pictures / "notes.txt").write_text("x")
    return folder


def picture(number):
    return Image.open(io.BytesIO(encoded(number, (48, 48))))


def saved(image, kind, **more):
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


@pytest.fixture
def called(place, tmp_path, monkeypatch, capsys):
    """(exit status, what was printed, what was complained about) of `clip-italian index`."""

    def call(*words, model="tiny"):
        monkeypatch.chdir(tmp_path)
        status = cli.main(["index", "--model", str(place / "runs" / model), *map(str, words)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def test_a_folder_becomes_an_index_and_is_kept_up_to_date(place, tmp_path, called, monkeypatch):
    monkeypatch.setattr(approximate, "HNSW_FROM", 15)
    words = ["--images", place / "pictures", "--index_dir", "pictures_index"]
    status, out, err = called(*words, "--approximate", "--least_recall", "0.9")
    assert status == 0, err
    assert out.startswith("pictures: 17 added, 0 kept, 0 changed, 0 removed, 2 rejected\n")
    assert "1 × not a JPEG, PNG or WebP\n" in out and "1 × damaged picture\n" in out
    assert "passed over: 1 × not .jpg" in out and "approximate index: hnsw, efSearch" in out
    assert out.endswith("index: pictures_index\n")

    encoder = RunEncoder(load_model(str(place / "runs" / "tiny")))
    index = open_index(tmp_path / "pictures_index", encoder.fingerprint)
    assert index.model_name == "tiny@6" and index.pictures == f"folder {place / 'pictures'}"
    # The vectors are those of evaluation.
    files = [(place / "pictures" / key).read_bytes() for key in index.keys]
    expected = encoder.encode_images(lambda some: [files[i] for i in some], index.keys)
    np.testing.assert_allclose(index.image_embeds, expected, atol=1e-5)
    row = index.keys.index("jpeg.jpg")
    rows, _ = index.search(expected[row], 1)
    assert rows[0] == row == index.search(expected[row], 1, exact=False)[0][0]

    status, out, _ = called(*words)
    assert status == 0 and out.startswith("pictures: 0 added, 17 kept, 0 changed, 0 removed, 2 rej")
    assert "0 embedded in" in out
    status, out, _ = called(*words, "--verify")
    assert (status, out) == (0, out) and "17 pictures, 2 files" in out


def test_records_have_captions_and_a_folder_of_their_own(place, tmp_path, called):
    status, _, err = called("--images", place / "a")
    assert status == 0, err
    run = str(place / "runs" / "tiny")
    fingerprint = RunEncoder(load_model(run)).fingerprint
    folder = default_folder(run, str(place / "a"), fingerprint)
    index = open_index(tmp_path / folder)
    assert index.captions == [[text] for text in CAPTIONS[:4]]
    status, _, err = called("--images", f"{place / 'a'}:train", "--index_dir", "train")
    assert status == 0, err
    assert len(open_index(tmp_path / "train")) == 5
    assert json.loads((tmp_path / "train" / "manifest.json").read_text())["format_version"] == 1


def test_the_default_folder_is_named_after_model_and_pictures():
    assert default_folder("runs/sample@best", "data/sample:train", "0123456789abcdef") == (
        "indexes/runs_sample_best-data_sample_train-01234567"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch_size", "0"], "batch_size = 0 is not allowed"),
        (["--least_recall", "1.5"], r"least_recall = 1.5 is not allowed"),
        (["--images", "none"], "no folder of pictures at 'none'"),
        (["--verify", "--index_dir", "none"], "no index of pictures at 'none'"),
    ],
)
def test_wrong_words_are_named(place, called, words, message):
    status, out, err = called("--images", place / "pictures", *words)
    assert (status, out) == (2, "") and message in err


def test_another_model_is_refused(place, called):
    make_run(place / "runs" / "other", place, dtype="bfloat16")
    words = ["--images", place / "a", "--index_dir", "mine"]
    assert called(*words)[0] == 0
    status, out, err = called(*words, model="other")
    assert (status, out) == (2, "")
    assert "mine is an index of the model 'tiny@6'" in err and "not of 'other@6'" in err
    assert "clip-italian index --model MODEL --images PICTURES --index_dir NEW_FOLDER" in err
