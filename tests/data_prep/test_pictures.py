import io
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data_prep import pictures
from data_prep.download import DownloadOptions, Fetched
from data_prep.images import ImageFilters
from data_prep.store import BYTES, ROWS, read_json, read_table, write_json, write_table
from tests.data_prep.test_decide import row


def picture(level, side=20):
    file = io.BytesIO()
    Image.fromarray(np.full((side, 2 * side, 3), level, np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def prepare(tmp_path):
    def run(rows, name="000000", earlier=None, filters=None):
        write_table(tmp_path / "rows.parquet", rows, ROWS)
        (tmp_path / "root").mkdir(exist_ok=True)
        told = Counter()
        pictures.prepare_pictures(
            tmp_path / "rows.parquet", tmp_path / name, tmp_path / "root",
            filters or ImageFilters(), DownloadOptions(), tmp_path / "read", earlier,
            report=told.update,
        )  # fmt: skip
        counts = read_json(tmp_path / name / "counts.json")
        assert counts["rows_in"] == counts["rows_out"] + sum(counts["rejected_rows"].values())
        lost = sum(counts["rejected_captions"].values())
        assert counts["captions_in"] == counts["captions_out"] + lost
        return read_table(tmp_path / name / "images.parquet"), counts, told

    return run


def test_local_pictures_stay_below_the_root(prepare, tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.jpg").write_bytes(picture(9))
    (root / "page.jpg").write_text("<html>")
    (tmp_path / "secret.jpg").write_bytes(picture(9))
    os.symlink(tmp_path / "secret.jpg", root / "link.jpg")
    names = [
        "a.jpg", "sub/../a.jpg", "page.jpg", "none.jpg", "sub", "../secret.jpg", "link.jpg",
        str(tmp_path / "secret.jpg"), "a\0.jpg", "x" * 5000, "",
    ]  # fmt: skip
    found, counts, told = prepare([row(n, ["a", "b"], name) for n, name in enumerate(names)])
    assert [one["key"] for one in found] == [0, 1]
    assert found[0]["digest"] == found[1]["digest"] == pictures.digest(picture(9))
    assert counts["rejected_rows"] == {
        "not an image": 1, "image missing": 2, "image path outside root": 3,
        "image cannot be read": 2, "no image path": 1,
    }  # fmt: skip
    assert counts["rejected_captions"]["image missing"] == 4
    assert (counts["local"], counts["bad_local"]) == (11, 1)
    assert read_json(tmp_path / "000000" / "again.json") == list(range(2, 11))  # may be mended
    assert told == Counter(counts["rejected_rows"]) + Counter(good=2)


def test_filters_have_reasons(prepare, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.jpg").write_bytes(picture(9))
    rows = [row(0, image="a.jpg")]
    for filters, reason in (
        (ImageFilters(min_side=21), "too small"),
        (ImageFilters(max_aspect=1.9), "too long a shape"),
    ):
        assert prepare(rows, reason, None, filters)[1]["rejected_rows"] == {reason: 1}
    assert len(prepare(rows, "fits", None, ImageFilters(min_side=20, max_aspect=2))[0]) == 1


def test_pictures_that_the_input_carries(prepare, tmp_path):
    key = (3 << 40) + 5
    (tmp_path / "read" / "00003").mkdir(parents=True)
    for first, last in ((0, 6), (6, 8), (8, 40)):
        carried = [
            {"key": (3 << 40) + n, "image_bytes": picture(n - 5)}
            for n in range(max(5, first), last)
        ]
        write_table(tmp_path / "read" / "00003" / f"bytes-{first:012}.parquet", carried, BYTES)
    rows = [row(key + n, image="", has_bytes=True) for n in (2, 0)]
    found, counts, _ = prepare(rows)
    assert [one["key"] for one in found] == [key, key + 2]
    assert [one["digest"] for one in found] == [pictures.digest(picture(n)) for n in (0, 2)]
    assert counts["local"] == 2
    with pytest.raises(RuntimeError, match="1 rows, 0 pictures, 0 failed"):
        prepare([row(key + 99, image="", has_bytes=True)], "lost")


@pytest.fixture
def web(monkeypatch):
    """Stands in for the network: URL → what `download` yields; keeps what was asked for."""
    answers, asked = {}, []

    def download(urls, options):
        for index in reversed(range(len(urls))):  # in any order
            asked.append(urls[index])
            yield Fetched(index, *answers[urls[index]])

    monkeypatch.setattr(pictures, "download", download)
    return answers, asked


def test_failed_downloads_are_tried_again_and_nothing_else(prepare, tmp_path, web):
    answers, asked = web
    answers |= {
        "http://a/good": (picture(1), ""),
        "http://a/gone": (b"", "not found", "404", False),
        "https://a/late": (b"", "timed out", "30 s", True),
        "http://a/busy": (b"", "too many requests", "", True),
        "http://a/page": (b"<html>", ""),
        "ftp://a/b": (b"", "not http(s)", "", False),
    }
    rows = [row(n, image=url) for n, url in enumerate(answers)]
    found, counts, _ = prepare(rows)
    assert [one["key"] for one in found] == [0] and len(asked) == 6
    assert counts["rejected_rows"] == {
        "not found": 1, "timed out": 1, "too many requests": 1, "not an image": 1,
        "not http(s)": 1,
    }  # fmt: skip
    assert counts["bad_local"] == counts["local"] == 0
    asked.clear()
    answers["https://a/late"] = (picture(3), "")
    found, counts, _ = prepare(rows, "again-000000", tmp_path / "000000")
    assert sorted(asked) == ["http://a/busy", "https://a/late"]
    assert [one["key"] for one in found] == [0, 2]
    assert counts["rejected_rows"] == {
        "not found": 1, "too many requests": 1, "not an image": 1, "not http(s)": 1
    }  # fmt: skip
    assert read_json(tmp_path / "again-000000" / "again.json") == [3]


def test_pictures_are_kept_in_the_order_of_their_rows(prepare, web):
    web[0].update({f"http://a/{n}": (picture(9 * n), "") for n in range(5)})
    found, *_ = prepare([row(n, image=f"http://a/{n}") for n in range(5)])  # come last first
    assert [one["key"] for one in found] == [0, 1, 2, 3, 4]


def test_a_newer_shard_takes_the_place_of_the_old_one(tmp_path):
    for name in ("000000", "again-000000"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "a.json", name)
    pictures.replace_shard(tmp_path / "again-000000", tmp_path / "000000")
    assert read_json(tmp_path / "000000" / "a.json") == "again-000000"
    assert [path.name for path in tmp_path.iterdir()] == ["000000"]


@pytest.mark.parametrize("stopped_after", ["first rename", "second rename"])
def test_a_replacement_that_was_stopped_loses_nothing(tmp_path, stopped_after):
    folder = tmp_path / ".old-000000"
    folder.mkdir()
    write_json(folder / "a.json", "old")
    if stopped_after == "second rename":
        (tmp_path / "000000").mkdir()
        write_json(tmp_path / "000000" / "a.json", "new")
    (tmp_path / "again-000000").mkdir()
    pictures.recover_shards(tmp_path)
    expected = "old" if stopped_after == "first rename" else "new"
    assert read_json(tmp_path / "000000" / "a.json") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["000000"]
