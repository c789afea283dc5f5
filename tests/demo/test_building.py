"""Making an index and keeping it up to date: what is embedded, what stays, what a stop leaves."""

import contextlib
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_italian.collection import Collection
from clip_italian.config import ConfigError
from clip_italian.demo import storage
from clip_italian.demo.building import update_index
from clip_italian.demo.index import open_index, verify
from clip_italian.demo.sources import folder_pictures, record_pictures
from tests.demo.colours import Colours, encoded, vector, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path):
    write(tmp_path / "pictures", *range(10))
    return tmp_path


def update(place, encoder=None, part_rows=4):
    """(summary, names that the encoder saw)."""
    encoder = encoder or Colours()
    pictures = folder_pictures(place / "pictures")
    return update_index(place / "index", pictures, encoder, part_rows=part_rows), encoder.seen


def counts(summary):
    return summary.added, summary.kept, summary.changed, summary.removed


def check(place, numbers):
    """The index is whole and holds exactly these pictures, each with its own vector."""
    verify(place / "index")
    index = open_index(place / "index")
    assert sorted(index.keys) == [f"{number:03}.png" for number in sorted(numbers)]
    for row, key in enumerate(index.keys):
        np.testing.assert_allclose(index.image_embeds[row], vector(int(key[:3])), atol=1e-6)
        assert index.thumbnail(row).startswith(b"\xff\xd8\xff")
    return index


def manifest(place):
    return json.loads((place / "index" / "manifest.json").read_text())


def files(place):
    return sorted(os.listdir(place / "index"))


def expected_files(place):
    found = manifest(place)
    return sorted(["manifest.json", "update.lock", *(part["file"] for part in found["parts"])])


def touch(path):
    os.utime(path, ns=(5, time.time_ns() + 10**9))


def test_the_first_update_embeds_everything_once(place):
    summary, seen = update(place)
    assert counts(summary) == (10, 0, 0, 0) and sorted(seen) == sorted(set(seen))
    assert len(seen) == 10
    check(place, range(10))
    assert [part["rows"] for part in manifest(place)["parts"]] == [4, 4, 2]
    assert files(place) == expected_files(place)


def test_an_update_without_changes_touches_nothing(place):
    update(place)
    written = [place / "index" / name for name in files(place) if name != storage.LOCK]
    before = {path: path.stat().st_mtime_ns for path in written}
    summary, seen = update(place)
    assert counts(summary) == (0, 10, 0, 0) and seen == []
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert summary.text().startswith("pictures: 0 added, 10 kept, 0 changed, 0 removed, 0 rejected")


def test_only_what_is_new_or_changed_is_embedded(place):
    update(place)
    write(place / "pictures", 11, 12)
    (place / "pictures" / "003.png").unlink()
    (place / "pictures" / "000.png").unlink()
    (place / "pictures" / "005.png").write_bytes(encoded(77))
    touch(place / "pictures" / "005.png")
    summary, seen = update(place)
    assert counts(summary) == (2, 7, 1, 2)
    assert sorted(seen) == ["005.png", "011.png", "012.png"]
    index = open_index(place / "index")
    row = index.keys.index("005.png")
    np.testing.assert_allclose(index.image_embeds[row], vector(77), atol=1e-6)
    (place / "pictures" / "005.png").unlink()
    assert counts(update(place)[0]) == (0, 9, 0, 1)
    check(place, [1, 2, 4, 6, 7, 8, 9, 11, 12])
    assert files(place) == expected_files(place), "what was replaced is deleted"


def test_a_part_that_nothing_happened_to_stays(place):
    update(place)
    first, second, _ = [part["file"] for part in manifest(place)["parts"]]
    write(place / "pictures", 11)
    update(place)
    assert {first, second} < {part["file"] for part in manifest(place)["parts"]}


def test_a_copy_of_the_pictures_is_not_embedded_again(place):
    update(place)
    for path in (place / "pictures").iterdir():
        touch(path)
    summary, seen = update(place)
    assert counts(summary) == (0, 10, 0, 0) and seen == []
    check(place, range(10))
    # The new stamps are kept: next time nothing is read.
    pictures = folder_pictures(place / "pictures")
    asked = []
    object.__setattr__(pictures, "read", asked.append)
    update_index(place / "index", pictures, Colours(), part_rows=4)
    assert asked == []


def test_small_parts_do_not_pile_up(place):
    for number in range(20, 40):
        write(place / "pictures", number)
        assert len(update(place, part_rows=8)[1]) == (1 if number > 20 else 11)
    check(place, [*range(10), *range(20, 40)])
    rows = [part["rows"] for part in manifest(place)["parts"]]
    assert max(rows) <= 8 and len(rows) <= 8


def test_all_can_go_and_come_back(place):
    update(place)
    for number in range(9):
        (place / "pictures" / f"{number:03}.png").unlink()
    assert counts(update(place)[0]) == (0, 1, 0, 9)
    check(place, [9])
    write(place / "pictures", *range(9))
    assert counts(update(place)[0]) == (9, 1, 0, 0)
    check(place, range(10))


def test_captions_follow_the_records(place):
    def records(captions, fingerprint):
        return record_pictures(
            Collection(
                "s", "records_train", ["s/0", "s/1"],
                lambda numbers: [encoded(int(number)) for number in numbers], fingerprint,
                captions=captions, caption_image=np.array([0, 1, 1], np.int32),
            )
        )  # fmt: skip

    encoder = Colours()
    update_index(place / "index", records(["uno", "due", "tre"], "a"), encoder)
    assert open_index(place / "index").captions == [["uno"], ["due", "tre"]]
    update_index(place / "index", records(["uno", "due", "QUATTRO"], "b"), encoder)
    assert open_index(place / "index").captions == [["uno"], ["due", "QUATTRO"]]
    assert encoder.seen == ["s/0", "s/1"], "the pictures have not changed"


def spoil(place):
    pictures = place / "pictures"
    (pictures / "001.png").write_bytes(b"")
    (pictures / "004.png").write_bytes(b"<html>")
    (pictures / "007.png").write_bytes(encoded(7, (99, 99))[:-30])
    (pictures / "x.jpg").write_bytes(b"GIF89a")


def test_what_cannot_be_used_is_set_aside_and_not_tried_again(place, monkeypatch):
    spoil(place)
    summary, _ = update(place)
    reasons = {"empty file": 1, "not a JPEG, PNG or WebP": 2, "damaged picture": 1}
    assert summary.rejected == reasons and counts(summary) == (7, 0, 0, 0)
    assert "rejected: 2 × not a JPEG, PNG or WebP" in summary.text()
    check(place, [0, 2, 3, 5, 6, 8, 9])
    assert [one["key"] for one in manifest(place)["rejected"]] == [
        "001.png", "004.png", "007.png", "x.jpg",
    ]  # fmt: skip
    again, seen = update(place)
    assert again.rejected == reasons and seen == [] and again.embedded == 0
    # Repaired, it comes in; gone, it is forgotten; spoiled later, it goes out.
    (place / "pictures" / "001.png").write_bytes(encoded(1))
    (place / "pictures" / "x.jpg").unlink()
    (place / "pictures" / "002.png").write_bytes(b"<html>")
    summary, seen = update(place)
    assert seen == ["001.png", "002.png"], "a blank keeps the place of what cannot be used"
    assert counts(summary) == (1, 6, 0, 0)
    assert summary.rejected == {"not a JPEG, PNG or WebP": 2, "damaged picture": 1}
    check(place, [0, 1, 3, 5, 6, 8, 9])


def test_what_could_not_be_read_is_tried_again(place):
    pictures = folder_pictures(place / "pictures")
    read = pictures.read

    def refuse(number):
        if number == 3:
            raise PermissionError("no")
        return read(number)

    object.__setattr__(pictures, "read", refuse)
    summary = update_index(place / "index", pictures, Colours(), part_rows=4)
    assert summary.rejected == {"cannot be read": 1} and summary.added == 9
    summary, seen = update(place)
    assert (summary.rejected, seen) == ({}, ["003.png"])
    check(place, range(10))


def test_a_picture_that_only_the_model_cannot_decode_is_set_aside(place):
    for number in (2, 5):
        path = place / "pictures" / f"{number:03}.png"
        path.write_bytes(path.read_bytes() + b"strange")
    summary, _ = update(place, Colours(refuse=b"strange"), part_rows=8)
    assert summary.rejected == {"unknown to the model's decoder": 2} and summary.added == 8
    check(place, [0, 1, 3, 4, 6, 7, 8, 9])


def test_vectors_that_are_none_are_refused(place):
    class Broken(Colours):
        def encode_images(self, read, names):
            return super().encode_images(read, names) * np.nan

    with pytest.raises(ValueError, match=r"pictures from '000\.png' on: row 0 has length nan"):
        update(place, Broken())


def test_another_models_index_is_refused_and_stays(place):
    update(place)
    before = manifest(place)
    other = Colours("other", "a" * 64)
    with pytest.raises(ConfigError, match=r"model 'colours' .*not of 'other' .*clip-italian index"):
        update(place, other)
    assert other.seen == [] and manifest(place) == before
    check(place, range(10))


def test_other_pictures_are_refused_and_moved_ones_are_not(place):
    update(place)
    write(place / "holiday", 50, 51)
    with pytest.raises(ConfigError, match=r"none of its 10 pictures is among those of .*holiday"):
        update_index(place / "index", folder_pictures(place / "holiday"), Colours())
    check(place, range(10))
    (place / "pictures").rename(place / "moved")
    encoder = Colours()
    update_index(place / "index", folder_pictures(place / "moved"), encoder)
    assert encoder.seen == []
    assert manifest(place)["pictures"] == f"folder {place / 'moved'}"


def test_a_folder_that_holds_something_else_is_left_alone(place):
    index = place / "index"
    index.mkdir()
    (index / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"is no index of pictures and holds other files \('thes"):
        update(place)
    assert files(place) == ["thesis.txt"]
    (index / "thesis.txt").rename(index / "manifest.json")
    with pytest.raises(ConfigError, match="is no manifest of an index of pictures"):
        update(place)
    assert (index / "manifest.json").read_text() == "years of work"


def test_leftovers_are_removed_and_nothing_else(place):
    update(place)
    index = place / "index"
    part = "part-" + "0" * 32 + ".safetensors"
    for name in (
        part,
        ".part.123.tmp",
        ".manifest.9.tmp",
        "mine.safetensors",
        "part-1.txt",
        ".x.tmp",
        "update-lock",
    ):
        (index / name).write_text("x")
    update(place)
    kept = {"mine.safetensors", "part-1.txt", ".x.tmp", "update-lock"}
    assert files(place) == sorted([*expected_files(place), *kept])


def test_two_updates_at_once_are_refused(place):
    update(place)
    with (
        storage.updating(place / "index"),
        pytest.raises(ConfigError, match="is being updated by another process"),
    ):
        update(place)
    update(place)


@contextlib.contextmanager
def no_file_above(size):
    """The system refuses to let files grow further, as a full disk does (EFBIG for ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_what_was_there(place):
    update(place)
    before, names = manifest(place), files(place)
    write(place / "pictures", *range(20, 24), size=(700, 700))
    with (
        no_file_above(5000),
        pytest.raises(
            ConfigError, match=r"the next part cannot be written .*File too large.*intact"
        ),
    ):
        update(place)
    assert (manifest(place), files(place)) == (before, names)
    check(place, range(10))
    assert counts(update(place)[0]) == (4, 10, 0, 0)


def test_a_full_disk_for_real(place):
    index = place / "index"
    index.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(index)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this account cannot mount")
    try:
        update(place)
        before = manifest(place)
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 255, (8, 300, 300, 3)).astype(np.uint8)
        for number, pixels in enumerate(noise):
            Image.fromarray(pixels).save(place / "pictures" / f"n{number}.png")
        with pytest.raises(ConfigError, match=r"cannot be written .*No space left"):
            update(place)
        assert manifest(place)["parts"][:2] == before["parts"][:2]
        assert files(place) == expected_files(place)
        verify(index)
    finally:
        subprocess.run(["umount", str(index)], check=True)


def test_a_folder_that_cannot_be_made_is_named(place):
    (place / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be"):
        update_index(place / "file" / "index", folder_pictures(place / "pictures"), Colours())


def digest_of(index):
    """What an index says, whatever its parts: its rows by key."""
    rows = sorted(
        (key, hashlib.sha256(index.image_embeds[row].tobytes() + index.thumbnail(row)).hexdigest())
        for row, key in enumerate(index.keys)
    )
    return rows


@pytest.mark.parametrize("parts_done", [0, 1, 2])
def test_a_killed_update_goes_on(place, parts_done):
    """SIGKILL while the next part is made: all parts before it are kept and not made again."""
    command = [sys.executable, "-m", "tests.demo.colours", "index", str(place / "pictures")]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SECONDS_A_PART": "1"}
    command[3] = str(place / "index")
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(parts_done + 1):
            assert process.stdout.readline() == "part\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    verify(place / "index")
    assert len(open_index(place / "index")) == 4 * parts_done
    (place / "index" / ".part.1.tmp").write_text("half a part")
    summary, seen = update(place)
    assert len(seen) == 10 - 4 * parts_done
    assert counts(summary) == (len(seen), 4 * parts_done, 0, 0)
    index = check(place, range(10))
    assert files(place) == expected_files(place)
    update_index(place / "fresh", folder_pictures(place / "pictures"), Colours(), part_rows=4)
    assert digest_of(index) == digest_of(open_index(place / "fresh"))


def test_a_stop_at_any_write_loses_no_row(place, monkeypatch):
    """Rows stay, or are in the part in the making, wherever a mixed update is stopped."""
    replace = os.replace
    for stop in range(20):
        here = place / str(stop)
        write(here / "pictures", *range(10))
        update(here)
        for number in (0, 5):
            (here / "pictures" / f"{number:03}.png").unlink()
        write(here / "pictures", 11, 12, 13)
        moves = []

        def stopping(*words, moves=moves, stop=stop):
            if len(moves) == stop:
                raise KeyboardInterrupt
            moves.append(words)
            replace(*words)

        monkeypatch.setattr(os, "replace", stopping)
        with contextlib.suppress(KeyboardInterrupt):
            update(here)
        finished = len(moves) < stop
        monkeypatch.setattr(os, "replace", replace)
        keys = set(open_index(here / "index").keys)
        assert keys >= {f"{number:03}.png" for number in (1, 2, 3, 4, 6, 7, 8, 9)}
        update(here)
        check(here, [1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13])
        assert files(here) == expected_files(here)
        if finished:
            return
    pytest.fail("the update has more writes than were tried")
