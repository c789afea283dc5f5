"""Kills trainings (SIGKILL), at random and inside saves, and checks that nothing is lost.

python -m tests.training.kills --kills 100 --aimed 30
"""

import argparse
import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from etils import epath

from clip_italian.training import saved
from clip_italian.training.monitor import read_metrics
from tests.training.small_run import SAVE_EVERY, STEPS

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass
class Counts:
    """What was done and seen. `check` raises on anything lost, so these are all of whole runs."""

    kills: int = 0
    inside: int = 0  # of them, those that left a checkpoint unfinished
    starting: int = 0  # of them, those before the first step
    runs: int = 0  # that came to their end, each equal to the uninterrupted one
    resumed: int = 0  # starts from a checkpoint
    again: int = 0  # steps, at most, that were done again after a kill outside of a save
    again_inside: int = 0  # and after one in a save, which goes on beside the next steps
    seconds: float = 0.0


class Life:
    """One process of a training, from its start to its end."""

    def __init__(self, workdir: Path, cache: Path):
        workdir.mkdir(parents=True, exist_ok=True)
        self._out, self._err = (
            workdir.with_name(f"{workdir.name}.{end}") for end in ("out", "err")
        )
        command = [sys.executable, "-m", "tests.training.small_run", str(workdir)]
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [*command, "--cache", str(cache)],
                cwd=ROOT,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    def says(self, word: str) -> str:
        """The rest of the line that begins with a word; empty while there is none."""
        lines = self._out.read_text().splitlines()
        found = [line[len(word) + 1 :] for line in lines if line.startswith(f"{word} ")]
        return found[-1] if found else ""

    def wait_for(self, seen) -> bool:
        """Whether something was seen before the process ended."""
        while self.process.poll() is None:
            if seen():
                return True
            time.sleep(0.0005)
        return False

    def kill(self) -> bool:
        """Whether it lived until this."""
        self.process.send_signal(signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL

    def finish(self) -> str:
        """Its digest.

        Raises:
          AssertionError: it failed.
        """
        code = self.process.wait()
        assert code == 0, f"a start ended with {code}: {self._err.read_text()[-3000:]}"
        return self.says("done")


def unfinished(workdir: Path) -> list[int]:
    """Steps of the checkpoints that are being written, or were when a life ended."""
    place = workdir / "checkpoints"
    names = os.listdir(place) if place.is_dir() else []
    return [int(name.partition(".")[0]) for name in names if "orbax-checkpoint-tmp" in name]


def committed(workdir: Path) -> list[int]:
    """Steps of the checkpoints, after all their files have been verified."""
    folder = epath.Path(workdir) / "checkpoints"
    steps = saved.steps(folder)
    for step in steps:
        assert saved.problems(folder, step) == [], (step, saved.problems(folder, step))
    return steps


def curve(workdir: Path) -> list[tuple]:
    """(step, loss, digest of the examples) of each line with a loss, whole lines only."""
    path = workdir / "metrics.jsonl"
    if path.exists() and not path.read_text().endswith("\n"):  # a line cut short by the kill
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    return [
        (line["step"], line["train/loss"], line["batch_digest"])
        for line in read_metrics(str(workdir))
        if "train/loss" in line
    ]


def kill_once(life: Life, workdir: Path, rng: random.Random, aimed: bool) -> tuple[bool, bool]:
    """Kills a life at a random moment, or inside one of its next saves.

    Returns:
      Whether it lived until this, and whether a save of its own was left unfinished.
    """
    if aimed:
        if not life.wait_for(lambda: life.says("from")):
            return False, False
        # What the life before it left is deleted first.
        for state in [False, True] * rng.randint(1, 3):
            if not life.wait_for(lambda state=state: bool(unfinished(workdir)) == state):
                return False, False
        time.sleep(rng.uniform(0, 0.08))
        killed = life.kill()
        return killed, killed and bool(unfinished(workdir))
    if rng.random() < 0.1:
        time.sleep(rng.uniform(0, 3))
    elif life.wait_for(lambda: life.says("from")):
        time.sleep(rng.uniform(0, 5))
    return life.kill(), False


def torture(folder: Path, *, kills: int, aimed: int, seed: int = 0, say=print) -> Counts:
    """Kills trainings until there were enough kills, and lets the last one come to its end.

    Args:
      folder: new or empty; runs and compiled programs go there.
      kills: how many in all.
      aimed: how many of them inside a save; aims that miss are tried again.
      seed: of the moments.
      say: takes a line of progress.

    Raises:
      AssertionError: a checkpoint was lost or damaged, more than a save interval was done again, or
        a run came out other than the uninterrupted one.
    """
    begin, rng, counts, cache = time.monotonic(), random.Random(seed), Counts(), folder / "cache"
    life = Life(folder / "whole", cache)
    truth = life.finish(), curve(folder / "whole")
    assert [step for step, *_ in truth[1]] == list(range(1, STEPS + 1))
    workdir, newest = folder / "run0", 0
    life = Life(workdir, cache)
    while True:
        enough = counts.kills >= kills and counts.inside >= aimed
        wanted = (counts.inside < aimed and rng.random() < 0.6) or counts.kills >= kills
        killed, inside = (False,) * 2 if enough else kill_once(life, workdir, rng, aimed=wanted)
        if not killed:
            assert (life.finish(), curve(workdir)) == truth, f"{workdir} came out differently"
            assert not unfinished(workdir), os.listdir(workdir / "checkpoints")
            check_start(life, newest, workdir, counts)
            counts.runs += 1
            if enough:
                break
            workdir, newest = folder / f"run{counts.runs}", 0
        else:
            counts.kills += 1
            counts.inside += inside
            if life.says("from"):
                check_start(life, newest, workdir, counts)
            else:
                counts.starting += 1
            steps = committed(workdir)
            assert max(steps, default=0) >= newest, f"{newest} was committed and is lost: {steps}"
            newest = max(steps, default=0)
            check_progress(workdir, newest, counts)
            if counts.kills % 10 == 0:
                say(f"{time.monotonic() - begin:.0f} s: {counts}")
        life = Life(workdir, cache)
    counts.seconds = time.monotonic() - begin
    return counts


def check_start(life: Life, newest: int, workdir: Path, counts: Counts) -> None:
    """A start goes on from the newest checkpoint that there was; after the last nothing is left."""
    began = int(life.says("from") or STEPS)
    assert began == newest, (workdir, began, newest)
    counts.resumed += newest > 0


def check_progress(workdir: Path, newest: int, counts: Counts) -> None:
    """At most one save interval is done again.

    A save that was being written does not count yet: then it is that interval, and the steps that
    were taken meanwhile.
    """
    done = max((step for step, *_ in curve(workdir)), default=0)
    if writing := unfinished(workdir):
        assert writing[0] - newest <= SAVE_EVERY and done - writing[0] <= SAVE_EVERY
        counts.again_inside = max(counts.again_inside, done - newest)
    else:
        assert done - newest <= SAVE_EVERY, (done, newest)
        counts.again = max(counts.again, done - newest)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--aimed", type=int, default=30, help="of them, inside a save")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(torture(Path(folder), kills=given.kills, aimed=given.aimed, seed=given.seed))


if __name__ == "__main__":
    main()
