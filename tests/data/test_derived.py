"""One process at a time makes a folder, and the lock does not outlive a killed one."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip_italian.data import derived

# Takes the lock, says so in a file, and goes on when another file is there.
HOLDER = """
import sys, time
from pathlib import Path
from clip_italian.data import derived

target, name = Path(sys.argv[1]), sys.argv[2]
target.with_name(f"{name}-tries").touch()
with derived.locked(target):
    target.with_name(f"{name}-has-it").touch()
    while not target.with_name(f"{name}-go-on").exists():
        time.sleep(0.02)
"""
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hold(tmp_path):
    """Starts a process that takes the lock of tmp_path/index."""
    started = []

    def start(name):
        words = [sys.executable, "-c", HOLDER, str(tmp_path / "index"), name]
        started.append(subprocess.Popen(words, cwd=ROOT))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} does not come"
        time.sleep(0.02)


@pytest.mark.parametrize("killed", [False, True])
def test_the_second_process_waits_for_the_first(tmp_path, hold, killed):
    first = hold("first")
    wait_for(tmp_path / "first-has-it")
    second = hold("second")
    wait_for(tmp_path / "second-tries")
    time.sleep(0.5)  # enough to take what is free
    assert not (tmp_path / "second-has-it").exists()
    if killed:
        first.kill()
    else:
        (tmp_path / "first-go-on").touch()
    wait_for(tmp_path / "second-has-it")
    (tmp_path / "second-go-on").touch()
    assert second.wait(60) == 0
    with derived.locked(tmp_path / "index"):
        pass
