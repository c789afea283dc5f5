"""Files of features: blocks, breaking off, damage; and which steps read them."""

import fcntl
import json
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from clip_italian.config import ConfigError
from clip_italian.data import features
from clip_italian.data.features import Cached, open_features, write_features

ROWS = 10


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(features, "BLOCK", 4)


def values(rows=ROWS):
    return np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) / 7


class Encoder:
    """Hands out features two at a time; breaks off before `fail_at`."""

    def __init__(self, fail_at=ROWS, size=2):
        self.fail_at, self.size, self.made = fail_at, size, []

    def __call__(self, first):
        for start in range(first, ROWS, self.size):
            if start >= self.fail_at:
                raise KeyboardInterrupt
            self.made.append(start)
            yield values()[start : start + self.size]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 10])
def test_rows_come_back(tmp_path, size):
    write_features(tmp_path, {"of": "x"}, ROWS, "float32", Encoder(size=size))
    found, broken = open_features(tmp_path)
    np.testing.assert_array_equal(found, values())
    assert found.dtype == np.float32 and broken == []
    assert json.loads((tmp_path / "features.json").read_text())["of"] == "x"
    np.testing.assert_array_equal(np.load(tmp_path / "features.npy"), values())


def test_bfloat16_takes_two_bytes(tmp_path):
    write_features(tmp_path, {}, ROWS, "bfloat16", Encoder())
    found, _ = open_features(tmp_path)
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found, values().astype(ml_dtypes.bfloat16))
    assert np.load(tmp_path / "features.npy").dtype == np.uint16


def test_what_breaks_off_goes_on_after_the_last_whole_block(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path, {}, ROWS, "float32", Encoder(fail_at=6))
    assert open_features(tmp_path) is None
    features.note_broken(tmp_path, 2)
    again = Encoder()
    write_features(tmp_path, {}, ROWS, "float32", again)
    assert again.made == [4, 6, 8]  # rows 4 and 5 a second time: half a block of three
    found, broken = open_features(tmp_path)
    np.testing.assert_array_equal(found, values())
    assert broken == [2]


def test_a_block_written_by_half_is_written_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path, {}, ROWS, "float32", Encoder(fail_at=8))
    path = tmp_path / "features.npy"
    path.write_bytes(path.read_bytes()[:-5])
    again = Encoder()
    write_features(tmp_path, {}, ROWS, "float32", again)
    assert again.made == [4, 6, 8]
    np.testing.assert_array_equal(open_features(tmp_path)[0], values())


@pytest.mark.parametrize(
    ("damage", "first"), [("cut", 8), ("header", 0), ("longer", 0), ("empty", 0), ("other type", 0)]
)
def test_a_file_of_another_size_is_noticed_and_mended(tmp_path, damage, first, caplog):
    write_features(tmp_path, {}, ROWS, "float32", Encoder())
    path = tmp_path / "features.npy"
    data = path.read_bytes()
    if damage == "other type":
        np.save(path, values().astype(np.float64))
    else:
        kept = {"cut": len(data) - 12, "header": 20, "empty": 0, "longer": len(data)}[damage]
        path.write_bytes(data[:kept] + b"more than 12 bytes" * (damage == "longer"))
    assert open_features(tmp_path) is None
    assert f"not {len(data)}" in caplog.text
    again = Encoder()
    write_features(tmp_path, {}, ROWS, "float32", again)
    assert again.made == list(range(first, ROWS, 2))
    np.testing.assert_array_equal(open_features(tmp_path)[0], values())


def test_too_few_rows_are_no_features(tmp_path):
    with pytest.raises(ValueError, match="8 of 10 rows"):
        write_features(tmp_path, {}, ROWS, "float32", lambda first: iter([values(8)]))
    assert open_features(tmp_path) is None


def test_two_runs_do_not_write_one_file(tmp_path):
    with (tmp_path / "features.npy").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as another process would hold it
        file.write(b"begun")
        file.flush()
        with pytest.raises(ConfigError, match="cached_views: another run is writing"):
            write_features(tmp_path, {}, ROWS, "float32", Encoder())
        assert (tmp_path / "features.npy").read_bytes() == b"begun"
    write_features(tmp_path, {}, ROWS, "float32", Encoder())
    np.testing.assert_array_equal(open_features(tmp_path)[0], values())


@pytest.mark.parametrize("damage", ["empty", "no json", "not features"])
def test_damage_is_mended(tmp_path, damage, caplog):
    write_features(tmp_path, {}, ROWS, "float32", Encoder())
    meta, data = tmp_path / "features.json", tmp_path / "features.npy"
    if damage == "not features":
        data.write_bytes(bytes(data.stat().st_size))
    else:
        meta.write_text("" if damage == "empty" else '{"rows": ')
    assert open_features(tmp_path) is None
    assert "cannot be read and is made anew" in caplog.text
    write_features(tmp_path, {}, ROWS, "float32", Encoder())
    np.testing.assert_array_equal(open_features(tmp_path)[0], values())


def test_a_disk_that_is_too_small_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: SimpleNamespace(free=119))
    with pytest.raises(ConfigError, match="cached_views: .* needs 120 bytes, 119 are free"):
        write_features(tmp_path, {}, ROWS, "float32", Encoder())


def test_each_tower_has_its_own_last_step():
    rows = [np.zeros((1, 1))]
    cached = Cached([rows], 5, rows, None)
    assert [cached.has_images(step) for step in (0, 4, 5, 9)] == [True, True, False, False]
    assert cached.has_text(0) and cached.has_text(10**9)
    assert (cached.next_change(0), cached.next_change(5)) == (5, None)
    assert Cached([rows], None).has_images(10**9) and Cached([rows], None).next_change(3) is None
    none = Cached()
    assert not none.has_images(0) and not none.has_text(0) and none.next_change(0) is None
