"""Format and reading of an index."""

import dataclasses
import io
import json
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_italian.config import ConfigError
from clip_italian.demo import exact, parts, storage
from clip_italian.demo.building import update_index
from clip_italian.demo.index import open_index, verify
from clip_italian.demo.sources import folder_pictures
from tests.demo.colours import Colours, unit, vector, write


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An index of ten pictures in three parts."""
    place = tmp_path_factory.mktemp("index")
    write(place / "pictures", *range(10))
    update_index(place / "index", folder_pictures(place / "pictures"), Colours(), part_rows=4)
    return place / "index"


@pytest.fixture
def folder(made, tmp_path):
    """A copy to damage."""
    return shutil.copytree(made, tmp_path / "index")


def edit(folder, change):
    path = folder / "manifest.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def part_files(folder):
    return [
        folder / one["file"] for one in json.loads((folder / "manifest.json").read_text())["parts"]
    ]


def test_rows_keys_and_thumbnails_belong_together(made):
    index = open_index(made, "f" * 64)
    assert index.keys == [f"{number:03}.png" for number in range(10)]
    assert (len(index), index.model_name, index.captions) == (10, "colours", [[]] * 10)
    assert index.image_embeds.dtype == np.float32
    np.testing.assert_allclose(index.image_embeds, [vector(n) for n in range(10)], atol=1e-6)
    for row in range(10):
        pixel = np.asarray(Image.open(io.BytesIO(index.thumbnail(row))), np.float32)[0, 0]
        np.testing.assert_allclose(unit([*pixel, 99]), vector(row), atol=0.03)
    for row in (-1, 10):
        with pytest.raises(IndexError):
            index.thumbnail(row)


def test_search_is_exact_and_best_first(made):
    index = open_index(made)
    for number in (0, 5, 9):
        rows, scores = index.search(vector(number), 3)
        expected = index.image_embeds.astype(np.float64) @ vector(number)
        assert rows.tolist() == np.argsort(-expected)[:3].tolist() and rows[0] == number
        np.testing.assert_allclose(scores, expected[rows], atol=1e-6)
        assert rows.dtype == np.int64 and scores.dtype == np.float32
    assert len(index.search(vector(0), 99)[0]) == 10
    assert len(index.search(vector(0), 0)[0]) == 0
    # Without an approximate index the exact answer is given.
    assert index.search(vector(3), 2, exact=False)[0][0] == 3


def test_ties_are_by_row():
    scores = np.array([0.5, 0.9, 0.5, 0.9, 0.5, 0.1], np.float32)
    assert exact.top_rows(scores, 3).tolist() == [1, 3, 0]
    assert exact.top_rows(scores, 4).tolist() == [1, 3, 0, 2]
    assert exact.top_rows(scores, 1).tolist() == [1]


def test_many_queries_in_blocks_are_as_one_by_one(monkeypatch):
    rng = np.random.default_rng(0)
    embeds, queries = unit(rng.normal(size=(50, 8))), unit(rng.normal(size=(7, 8)))
    monkeypatch.setattr(exact, "_SCORES", 100)  # two queries at a time
    found = exact.search(embeds, queries, 5)
    assert len(found) == 7
    for query, (rows, scores) in zip(queries, found, strict=True):
        assert rows.tolist() == np.argsort(-(embeds @ query))[:5].tolist()
        np.testing.assert_allclose(scores, np.sort(embeds @ query)[::-1][:5], atol=1e-6)


def test_thumbnails_are_read_from_several_threads(made):
    index = open_index(made)
    expected = [index.thumbnail(row) for row in range(10)]
    wrong, done = [], []

    def look(first):
        for step in range(500):
            row = (first + step) % 10
            if index.thumbnail(row) != expected[row]:
                wrong.append(row)
        done.append(first)

    threads = [threading.Thread(target=look, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(done), wrong) == (8, [])


def test_an_index_without_pictures_finds_nothing(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"<html>")
    update_index(tmp_path / "index", folder_pictures(tmp_path / "pictures"), Colours())
    index = open_index(tmp_path / "index")
    assert len(index) == 0 and len(index.search(vector(0), 3)[0]) == 0


def test_another_models_index_is_refused(made):
    with pytest.raises(
        ConfigError, match=r"of the model 'colours' \(ffff.*aaaa.*clip-italian index"
    ):
        open_index(made, "a" * 64)
    assert len(open_index(made, "")) == 10


def test_no_index_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"no index of pictures at .*clip-italian index --model"):
        open_index(tmp_path / "none")


def test_an_index_of_format_1_is_read(tmp_path):
    """Written by version 0.1.0 from pictures 1 to 3; the last one was no picture."""
    folder = Path(__file__).parent / "fixtures" / "index_1"
    verify(folder)
    index = open_index(folder, "f" * 64)
    assert index.keys == ["001.png", "002.png"] and index.captions == [[], []]
    np.testing.assert_allclose(index.image_embeds, [vector(1), vector(2)], atol=1e-6)
    assert index.thumbnail(1).startswith(b"\xff\xd8\xff")
    manifest = storage.read_manifest(folder)
    assert manifest is not None and manifest.rejected[0].reason == "not a JPEG, PNG or WebP"


def test_a_newer_format_is_refused(folder):
    edit(folder, lambda found: found.update(format_version=2))
    with pytest.raises(
        ConfigError, match=r"newer version \(index format 2, this one reads up to 1"
    ):
        open_index(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["parts"][0].update(file="../secret.safetensors"),
        lambda found: found["parts"][0].update(file="/etc/passwd"),
        lambda found: found.pop("parts"),
        lambda found: found["model"].pop("dim"),
        lambda found: found["model"].update(dim="4"),
        lambda found: found["parts"][0].update(rows="4"),
    ],
)
def test_a_manifest_that_is_none_is_refused(folder, change):
    edit(folder, change)
    with pytest.raises(ConfigError, match=r"manifest\.json is damaged"):
        open_index(folder)


def test_somebody_elses_manifest_is_refused(folder):
    strange = '{"kind": "clip_italian picture index", "format_version": "x"}'
    for text in ("{}", "[]", "no JSON", '{"kind": "web app"}', strange):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ConfigError, match="is no manifest of an index of pictures"):
            open_index(folder)


def test_missing_and_truncated_parts_are_refused(folder):
    second = part_files(folder)[1]
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    with pytest.raises(
        ConfigError, match=rf"{second.name} is damaged: .* bytes, not {len(whole):,}"
    ):
        open_index(folder)
    second.unlink()
    with pytest.raises(ConfigError, match=rf"{second.name} is damaged: No such file"):
        open_index(folder)


@pytest.mark.parametrize("use", [lambda folder: f"{len(open_index(folder))} pictures", verify])
def test_an_update_between_manifest_and_parts_does_no_harm(tmp_path, monkeypatch, use):
    write(tmp_path / "pictures", *range(4))

    def update():
        update_index(tmp_path / "index", folder_pictures(tmp_path / "pictures"), Colours())

    update()
    read = storage.read_manifest

    def read_and_update(folder):
        found = read(folder)
        monkeypatch.undo()
        write(tmp_path / "pictures", 9)
        update()  # the one part there was is gone
        return found

    monkeypatch.setattr(storage, "read_manifest", read_and_update)
    assert "5 pictures" in use(tmp_path / "index")


def test_verify_finds_a_flipped_bit_and_names_every_bad_file(folder):
    assert "10 pictures, 3 files" in verify(folder)
    for path in part_files(folder)[:2]:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        verify(folder)
    bad = [path.name in str(caught.value) for path in part_files(folder)]
    assert bad == [True, True, False]


def test_a_part_that_is_not_what_the_manifest_says_is_refused(folder):
    edit(folder, lambda found: found["parts"][0].update(rows=3))
    with pytest.raises(ConfigError, match="is damaged"):
        open_index(folder)


def test_no_pickle_is_loaded(folder, tmp_path):
    touched = tmp_path / "touched"

    class Trap:
        def __reduce__(self):
            return (open, (str(touched), "w"))

    trap = pickle.dumps(Trap())
    path = part_files(folder)[0]
    path.write_bytes(trap)
    edit(folder, lambda found: found["parts"][0].update(bytes=len(trap)))
    with pytest.raises(ConfigError, match="is damaged"):
        open_index(folder)
    assert not touched.exists()


@pytest.mark.parametrize("offsets", [[0, 12, 9], [0, 0, 9], [1, 4, 9], [0, 4, 99], [0, 9]])
def test_offsets_beyond_the_thumbnails_are_refused(tmp_path, offsets, monkeypatch):
    facts = parts.Facts(["a", "b"], ["", ""], ["", ""], [[], []])
    rows = parts.Rows(facts, unit(np.ones((2, 4))), [b"1234", b"12345"])
    monkeypatch.setattr(np, "cumsum", lambda *_, **__: np.array(offsets))
    part = parts.write(tmp_path, rows)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="is damaged"):
        parts.open_part(tmp_path, part, 4)
    good = parts.write(tmp_path, rows)
    assert parts.read_rows(tmp_path, good, 4).thumbnails == [b"1234", b"12345"]


def test_names_that_are_no_utf8_survive(tmp_path):
    name = b"caff\xe8.png".decode("utf-8", "surrogateescape")
    facts = parts.Facts([name], [""], [""], [["un caffè"]])
    part = parts.write(tmp_path, parts.Rows(facts, unit(np.ones((1, 4))), [b"1"]))
    rejected = (storage.Rejected(name, "", "empty file"),)
    manifest = storage.Manifest("m", "f", 4, "p", (part,), rejected)
    storage.write_manifest(tmp_path, manifest)
    assert storage.read_manifest(tmp_path) == manifest
    assert open_index(tmp_path).keys == [name]


def test_a_manifest_reads_back_as_written(tmp_path):
    near = storage.Approximate(
        "approximate-" + "0" * 32 + ".faiss", 9, 5, "a", "ivf", 4, 0.5, 0.25, 2.0, 1.0
    )
    manifest = storage.Manifest("m", "f", 4, "p", (), (), near)
    storage.write_manifest(tmp_path, manifest)
    assert storage.read_manifest(tmp_path) == manifest
    assert dataclasses.asdict(near)["recall_texts"] == 0.25
