"""A save that finds no room: what is said, what stays, and what the next start clears away."""

import contextlib
import dataclasses
import json
import os
import re
import resource
import subprocess
import time
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from clip_italian.config import ConfigError, TrainConfig
from clip_italian.training import distributed, manifest, saved, tensorboard
from clip_italian.training.checkpoint import Checkpoints
from clip_italian.training.files import SaveError
from clip_italian.training.monitor import Monitor
from clip_italian.training.step import TrainState
from tests.training import test_faults
from tests.training.test_loop import losses, make_config, run

# TensorStore leaves writes behind that find Orbax's event loop closed when one of them has failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

WIDTH = 1000  # 4 MB of random floats, which hardly compress


def large(step):
    values = np.random.default_rng(step).normal(size=(WIDTH, WIDTH))
    params = {"w": jnp.asarray(values, jnp.float32)}
    return TrainState(jnp.int32(step), params, {}, jnp.zeros(2, jnp.uint32))


@contextlib.contextmanager
def no_file_above(size):
    """The system refuses to let files grow further, as a full disk does (EFBIG for ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(workdir):
    return sorted(os.listdir(workdir / "checkpoints"))


def wait_for(workdir, wanted):
    """Leftovers are deleted in the background."""
    end = time.monotonic() + 20
    while names(workdir) != wanted and time.monotonic() < end:
        time.sleep(0.02)
    assert names(workdir) == wanted


def check_message(error, workdir, step, number):
    """It names the folder, the bytes needed and the bytes free."""
    found = re.search(r"step (\d+), which needs about ([\d,]+) bytes \(([\d,]+) were free\)", error)
    assert found and int(found[1]) == step
    assert int(found[2].replace(",", "")) == 4 * WIDTH**2 + 4 + 8
    assert error.startswith(f"workdir: {workdir / 'checkpoints'} does not take the checkpoint")
    # TensorStore's own error, or that of a small file beside its own.
    assert f"os_error_code='{number}'" in error or f"[Errno {number}]" in error
    assert "make room and start again" in error


@pytest.mark.parametrize("at", ["the next save", "the end"])
def test_a_full_disk_is_named_and_the_earlier_checkpoint_stays(tmp_path, at):
    checkpoints = Checkpoints(make_config(tmp_path), "fingerprint")
    checkpoints.save(large(3), {"score": 1.0})
    checkpoints.best()  # waits
    with no_file_above(100_000), pytest.raises(SaveError) as caught:
        checkpoints.save(large(4), None)
        if at == "the next save":
            checkpoints.save(large(5), None)
        checkpoints.close()
    check_message(str(caught.value), tmp_path, 4, 27)
    checkpoints.close()
    assert isinstance(caught.value, ConfigError)  # which the command line shows as one line
    assert names(tmp_path) == ["3", "4.orbax-checkpoint-tmp"]
    assert manifest.problems(epath.Path(tmp_path) / "checkpoints" / "3") == []

    again = Checkpoints(make_config(tmp_path), "fingerprint")
    assert again.latest_step() == 3
    wait_for(tmp_path, ["3"])
    again.save(large(4), None)
    again.close()
    assert names(tmp_path) == ["3", "4"]


def test_no_room_for_the_manifest_is_no_checkpoint(tmp_path, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device", str(folder / manifest.NAME))

    monkeypatch.setattr(manifest, "write", full)
    checkpoints = Checkpoints(make_config(tmp_path), "fingerprint")
    checkpoints.save(large(3), None)
    with pytest.raises(SaveError, match=r"No space left on device.*sha256\.json.*make room"):
        checkpoints.close()
    assert saved.steps(epath.Path(tmp_path) / "checkpoints") == []


@pytest.mark.slow
def test_a_full_disk_for_real(tmp_path):
    workdir = tmp_path / "small"
    workdir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(workdir)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this account cannot mount")
    try:
        checkpoints = Checkpoints(make_config(workdir), "fingerprint")
        checkpoints.save(large(3), {"score": 1.0})
        checkpoints.save(large(4), None)
        with pytest.raises(SaveError) as caught:
            checkpoints.close()
        check_message(str(caught.value), workdir, 4, 28)
        assert manifest.problems(epath.Path(workdir) / "checkpoints" / "3") == []
        again = Checkpoints(make_config(workdir), "fingerprint")
        assert again.latest_step() == 3
        wait_for(workdir, ["3"])
        again.close()
    finally:
        subprocess.run(["umount", "-l", str(workdir)], check=True)


def test_a_training_ends_with_the_error_and_goes_on_from_what_it_has(tmp_path, monkeypatch):
    """A save that fails late, in the background, ends the loop at the next one."""
    config, write = make_config(tmp_path), manifest.write

    def full(folder):
        if folder.name.startswith("6."):
            raise OSError(28, "No space left on device", str(folder / manifest.NAME))
        write(folder)

    monkeypatch.setattr(manifest, "write", full)
    with pytest.raises(SaveError, match="step 6, which needs about .* bytes .* were free"):
        run(config)
    assert names(tmp_path) == ["3", "4", "6.orbax-checkpoint-tmp"]
    monkeypatch.undo()
    assert int(run(config).step) == 12
    assert names(tmp_path) == ["12", "4", "9"]


def test_a_full_disk_at_the_start_costs_no_earlier_line_of_metrics(tmp_path, monkeypatch):
    line = json.dumps({"step": 3, "train/loss": 1.0}) + "\n"
    later = json.dumps({"step": 4, "train/loss": 1.0}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(line + later)
    with no_file_above(10), pytest.raises(SaveError, match="metrics.jsonl does not take its cont"):
        Monitor(TrainConfig(workdir=str(tmp_path), steps=5), first_step=3)
    assert (tmp_path / "metrics.jsonl").read_text() == line + later
    Monitor(TrainConfig(workdir=str(tmp_path), steps=5), first_step=3).close()
    assert (tmp_path / "metrics.jsonl").read_text() == line
    assert not list(tmp_path.glob("*.tmp"))


def test_a_full_disk_between_saves_is_named_by_the_line_that_finds_no_room(tmp_path):
    one = Monitor(TrainConfig(workdir=str(tmp_path), steps=5), first_step=0)
    one.log(1, {"train/loss": 1.0})
    with no_file_above(50), pytest.raises(SaveError) as caught:
        one.log(2, {"train/loss": 1.0})
    one.close()
    assert re.fullmatch(
        rf"workdir: {tmp_path}/metrics.jsonl does not take a line, which needs about 31 bytes "
        r"\([\d,]+ were free\): .*File too large.*; make room and start again: .* are whole",
        str(caught.value),
    )


def test_a_full_disk_between_saves_ends_the_run_which_goes_on_from_there(tmp_path):
    config = make_config(tmp_path)
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, save_every=100),
        eval=dataclasses.replace(config.eval, eval_every=100),
    )
    with no_file_above(1000), pytest.raises(SaveError, match=r"which need.* bytes .* make room"):
        run(config)
    assert int(run(config).step) == 12
    assert [step for step, *_ in losses(tmp_path)] == list(range(1, 13))


def test_a_full_disk_that_meets_a_fault_is_named(tmp_path):
    long = SimpleNamespace(names_of=lambda step, skipped: ["x" * 3000], broken=())
    with no_file_above(2000), pytest.raises(SaveError, match="faults.jsonl does not take a line"):
        test_faults.run(test_faults.make_config(tmp_path), {0: test_faults.NAN}, examples=long)


def test_curves_that_find_no_room_end_the_run_and_do_not_hang_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "FLUSH_SECONDS", 0)
    one = tensorboard.Scalars(epath.Path(tmp_path), 0)
    said = r"does not take TensorBoard's curves, which need about .* bytes .* make room"
    with no_file_above(200), pytest.raises(SaveError, match=said):
        for step in range(100):
            one.log(step, {"loss": 1.0})
    one.close()


def test_a_file_that_finds_no_room_stays_what_it_was(tmp_path):
    path = tmp_path / "run" / "config.py"
    distributed.write(str(path), "config = 1\n")
    with no_file_above(10), pytest.raises(SaveError, match=r"config\.py does not take its"):
        distributed.write(str(path), "config = 2\n" * 1000)
    assert path.read_text() == "config = 1\n"
    distributed.write(str(path), "config = 2\n")
    assert path.read_text() == "config = 2\n" and os.listdir(path.parent) == ["config.py"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="file/run/checkpoints does not take checkpoints: .*mend"):
        Checkpoints(make_config(tmp_path / "file" / "run"), "fingerprint").latest_step()


def test_other_errors_stay_what_they_are(tmp_path, monkeypatch):
    checkpoints = Checkpoints(make_config(tmp_path), "fingerprint")

    def broken(*_, **__):
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(checkpoints._manager, "save", broken)
    with pytest.raises(ValueError, match="a mistake of ours") as caught:
        checkpoints.save(large(3), None)
    assert not isinstance(caught.value, ConfigError)
    checkpoints.close()
