"""Checkpoints that are damaged are noticed, and the newest whole one is taken."""

import errno
import json
import random
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath

from clip_italian.config import ConfigError
from clip_italian.training import checkpoint, loop, manifest, saved
from clip_italian.training.checkpoint import Checkpoints
from clip_italian.training.parallel import make_parallel
from tests import toy
from tests.training.conftest import STEPS, state_of
from tests.training.test_loop import losses, make_config, run


def newest(workdir):
    checkpoints = Checkpoints(make_config(workdir), "fingerprint")
    try:
        return checkpoints.latest_step()
    finally:
        checkpoints.close()


def step_folder(workdir, step):
    return workdir / "checkpoints" / str(step)


def sealed_files(folder):
    return [folder / name for name in sorted(manifest.read(epath.Path(folder)))]


def payload(workdir, step):
    return max(sealed_files(step_folder(workdir, step)), key=lambda path: path.stat().st_size)


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path, rng):
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def delete(path, rng):
    path.unlink()


def steps_in(folder):
    return sorted(int(path.name.split("-")[0]) for path in folder.iterdir())


def test_every_file_is_sealed(workdir):
    for step in STEPS:
        folder = step_folder(workdir, step)
        own = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert set(manifest.read(epath.Path(folder))) == own - manifest.UNSEALED
        assert {"run/metadata", "state/_METADATA", "state/manifest.ocdbt"} < own
        assert manifest.problems(epath.Path(folder)) == []
    assert newest(workdir) == 12


@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_damage_is_always_found(workdir, damage):
    folder, rng = epath.Path(step_folder(workdir, 12)), random.Random(0)
    files = sealed_files(folder)
    # As many hits for every kind of file: arrays, structure, the run, Orbax's own.
    chosen = [files[number % len(files)] for number in range(100)]
    found = 0
    for path in chosen:
        whole = path.read_bytes()
        damage(path, rng)
        found += len(manifest.problems(folder)) == 1
        path.write_bytes(whole)
    assert found == 100 and len(files) > 8 and manifest.problems(folder) == []


@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_a_damaged_manifest_is_damage(workdir, damage):
    path, rng = step_folder(workdir, 12) / manifest.NAME, random.Random(0)
    text = path.read_bytes()
    for _ in range(100):
        damage(path, rng)
        if path.exists() and _same_manifest(path, text):
            continue  # a flip among its blanks
        assert manifest.problems(epath.Path(path.parent))
        path.write_bytes(text)


def _same_manifest(path, text):
    try:
        return json.loads(path.read_bytes()) == json.loads(text)
    except ValueError:
        return False


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt"])
@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_what_is_not_sealed_does_no_harm(workdir, name, damage):
    damage(step_folder(workdir, 12) / name, random.Random(3))
    checkpoints = Checkpoints(make_config(workdir), "fingerprint")
    assert checkpoints.latest_step() == 12
    checkpoints.check_same_run(12)
    restored = checkpoints.restore(12, state_of(12))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state_of(12))


def test_the_newest_whole_checkpoint_is_taken(workdir, caplog):
    for step in (8, 12):
        flip(payload(workdir, step), random.Random(1))
    assert newest(workdir) == 4
    assert caplog.text.count("is DAMAGED and is not used") == 2
    assert "has other contents than were saved" in caplog.text
    assert "the checkpoint of step 4 is used instead" in caplog.text
    assert steps_in(workdir / "checkpoints") == [4]
    assert steps_in(workdir / "damaged") == [8, 12]
    assert newest(workdir) == 4 and caplog.text.count("DAMAGED") == 2


@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_damaged_metrics_of_an_older_checkpoint_do_not_end_the_run(workdir, caplog, damage):
    damage(step_folder(workdir, 4) / "metrics" / "metrics", random.Random(5))
    checkpoints = Checkpoints(make_config(workdir), "fingerprint")
    assert checkpoints.latest_step() == 12
    assert checkpoints.best() == (8, 0.5)
    checkpoints.save(state_of(16), {"score": 0.6})
    checkpoints.close()
    assert steps_in(workdir / "checkpoints") == [12, 16]
    assert steps_in(workdir / "damaged") == [4] and "metrics/metrics" in caplog.text


def test_a_kill_while_one_is_deleted_leaves_no_half_of_it(workdir, monkeypatch, caplog):
    monkeypatch.setattr(Checkpoints, "_clear", lambda self: None)  # the kill comes before it
    checkpoints = Checkpoints(make_config(workdir), "fingerprint")
    checkpoints.save(state_of(16), None)
    checkpoints.close()
    monkeypatch.undo()
    assert saved.steps(epath.Path(workdir) / "checkpoints") == [4, 12, 16]
    (halfway,) = (workdir / "checkpoints" / "deleted").iterdir()
    for path in sealed_files(halfway)[:3]:
        path.unlink()
    assert newest(workdir) == 16 and "DAMAGED" not in caplog.text
    assert steps_in(workdir / "checkpoints") == [4, 12, 16]
    assert not (workdir / "damaged").exists()


def test_a_run_goes_on_from_it_as_if_nothing_had_been(tmp_path):
    state = run(make_config(tmp_path))
    before = losses(tmp_path)
    flip(payload(tmp_path, 12), random.Random(2))
    again = run(make_config(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert losses(tmp_path) == before
    assert newest(tmp_path) == 12


def test_all_damaged_is_an_error_at_every_start_and_nothing_begins_anew(workdir):
    for step in STEPS:
        delete(payload(workdir, step), None)
    for _ in range(2):
        config = make_config(workdir)
        checkpoints = Checkpoints(config, "fingerprint")
        parallel = make_parallel("mesh", jax.devices()[:2])
        with pytest.raises(ConfigError, match="all checkpoints in .* are damaged"):
            loop.start_state(config, parallel, toy.init_params, toy.init_params, checkpoints)
        checkpoints.close()
    assert steps_in(workdir / "checkpoints") == sorted(STEPS)


def of_format_1(folder):
    """Makes a checkpoint what the version before manifests wrote."""
    (folder / manifest.NAME).unlink()
    path = folder / "run" / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 1}))


def test_checkpoints_of_before_are_accepted_with_a_warning(workdir, caplog):
    for step in STEPS:
        of_format_1(step_folder(workdir, step))
    checkpoints = Checkpoints(make_config(workdir), "fingerprint")
    assert checkpoints.latest_step() == 12
    checkpoints.check_same_run(12)
    restored = checkpoints.restore(12, state_of(12))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state_of(12))
    assert "step 12" in caplog.text and "cannot be known" in caplog.text
    assert "DAMAGED" not in caplog.text


def test_a_manifest_that_should_be_there_is_missed(workdir, caplog):
    (step_folder(workdir, 12) / manifest.NAME).unlink()
    assert newest(workdir) == 8
    assert "sha256.json is missing" in caplog.text


def test_other_processes_take_the_answer_of_process_0(workdir, monkeypatch):
    flip(payload(workdir, 12), random.Random(2))
    told = []

    def broadcast(value):
        told.append(int(value))
        return np.int32(8)  # what process 0 found

    monkeypatch.setattr(checkpoint.multihost_utils, "broadcast_one_to_all", broadcast)
    monkeypatch.setattr(checkpoint, "jax", SimpleNamespace(process_index=lambda: 1))
    (workdir / "checkpoints" / "deleted").mkdir()
    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints.folder = epath.Path(workdir) / "checkpoints"
    checkpoints.__dict__["_manager"] = None
    assert checkpoints.latest_step() == 8
    assert told == [-1]
    left = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert left == ["12", "4", "8", "deleted"], "process 0 moves and deletes"


def test_names_of_problems(tmp_path):
    folder = epath.Path(tmp_path)
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(bytes(100_000))
    manifest.write(folder)
    (tmp_path / "new").write_bytes(b"")
    assert manifest.problems(folder) == []
    (tmp_path / "b").write_bytes(bytes(99_999) + b"1")
    assert manifest.problems(folder) == ["b has other contents than were saved"]
    assert manifest.problems(folder, quick=True) == []
    (tmp_path / "b").write_bytes(bytes(99_999))
    (tmp_path / "a").write_bytes(b"124")
    wrong = ["a has other contents than were saved", "b has 99,999 bytes, not 100,000"]
    assert manifest.problems(folder) == manifest.problems(folder, quick=True) == wrong
    (tmp_path / "b").unlink()
    assert manifest.problems(folder)[1] == "b is missing"
    for text in ("{", "[]", '{"files": {"a": 1}}'):
        (tmp_path / manifest.NAME).write_text(text)
        assert "sha256.json cannot be read" in manifest.problems(folder)[0]


def test_a_disk_that_fails_is_damage_and_a_network_that_fails_is_not(workdir, monkeypatch):
    folder = epath.Path(workdir) / "checkpoints"

    def failing(number):
        def seal(path):
            raise OSError(number, "it failed")

        return seal

    monkeypatch.setattr(manifest, "_seal", failing(errno.EIO))
    assert "it failed" in saved.problems(folder, 12)[0]
    monkeypatch.setattr(manifest, "_seal", failing(errno.ETIMEDOUT))
    with pytest.raises(OSError, match="it failed"):
        saved.problems(folder, 12)
