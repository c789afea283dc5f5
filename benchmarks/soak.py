"""A run under faults for some minutes, against the same run left in peace.

    python -m benchmarks.soak --minutes 30

The drawn sample with tiny towers and some damaged pictures, trained by `run_hybrid_clip.py` in
processes of its own: first undisturbed, while memory, file descriptors and threads are watched,
then again and again under faults until the minutes are over:

    kill -9             at a random moment, also before the first step
    kill -9 in a save   while a checkpoint is being written
    SIGTERM             at a random moment of the training
    full disk           the file system of the run is filled (a small tmpfs, so it needs root)
    flipped bit         one bit of one file of the newest checkpoint, between two processes

Each run must end with the losses, the examples, the parameters and the moments of the undisturbed
one, bit by bit. Linux only.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.soak_run import (
    DAMAGED,
    SCENES,
    Training,
    committed,
    differences,
    last_step,
    prepare,
    undisturbed,
)

DISK = 96 << 20  # bytes of the file system on which a run is disturbed
SAVED = 75  # EX_TEMPFAIL: saved, start me again
FLIPS = 0.2  # share of starts before which a bit is flipped
PATIENCE = 180.0  # seconds within which a disturbed process must end


def main() -> None:
    """The command line."""
    parser = measure.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="under faults")
    parser.add_argument("--steps", type=int, default=11_000, help="of a run")
    parser.add_argument("--save_every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    arguments = parser.parse_args()
    measure.pin(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = prepare(folder, arguments.steps, arguments.save_every)
        measure.say(f"{DAMAGED} of {SCENES} pictures are damaged; undisturbed run")
        watched = undisturbed(config, folder / "whole", arguments.steps)
        with disk(folder / "disk") as place:
            soak = Soak(config, place, arguments.steps, random.Random(arguments.seed))
            end = time.monotonic() + 60 * arguments.minutes
            while time.monotonic() < end:
                soak.round(end)
                wrong = differences(folder / "whole", soak.workdir, arguments.steps)
                if wrong:
                    raise SystemExit(f"the disturbed run differs: {', '.join(wrong)}")
                soak.counts["runs equal to the undisturbed one, bit by bit"] += 1
                shutil.rmtree(soak.workdir)
    results = {**{f"undisturbed: {k}": v for k, v in watched.items()}, **soak.summary()}
    measure.show(("what", "number"), list(results.items()))
    measure.finish(arguments, {"results": results})


@contextlib.contextmanager
def disk(place: Path) -> Iterator[Path]:
    """A small file system where that is allowed, so that it can be filled; else a folder."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield place
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


class Soak:
    """Runs under faults, what was done to them, and what it cost.

    Attributes:
      workdir: of the run that is disturbed now.
      counts: of faults, and of what came of them.
    """

    def __init__(self, config: Path, place: Path, steps: int, rng: random.Random) -> None:
        self.workdir = place / "run"
        self.counts: Counter[str] = Counter()
        self._config, self._place, self._steps, self._rng = config, place, steps, rng
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._again: list[int] = []
        self._flipped: int | None = None  # step of a damaged checkpoint that nobody has met yet
        self._faults = [self.kill, self.kill_in_a_save, self.terminate]
        if os.path.ismount(place):
            self._faults.append(self.fill_the_disk)

    def round(self, end: float) -> None:
        """One run from its start to its end; disturbed until `end` (monotonic seconds)."""
        newest = 0
        while True:
            fault = self.leave_alone
            if time.monotonic() < end:
                fault = self._rng.choice(self._faults)
                if self._rng.random() < FLIPS:
                    self.flip_a_bit()
            training = Training(self._config, self.workdir)
            fault(training)
            measure.say(
                f"{fault.__name__}: exit status {training.process.returncode}, step "
                f"{last_step(self.workdir)}, checkpoints {committed(self.workdir)}"
            )
            if self._met_the_damage():
                newest = 0  # the one before is the newest now
            steps = committed(self.workdir)
            if steps and steps[-1] < newest:
                raise SystemExit(f"the checkpoint of step {newest} is gone:\n{training.said}")
            newest = max([newest, *steps])
            if training.process.returncode == 0:
                return
            self._again.append(max(last_step(self.workdir) - newest, 0))

    def kill(self, training: Training) -> None:
        """SIGKILL at any moment."""
        self._wait(training, self._rng.uniform(0, 25))
        self._end(training, signal.SIGKILL, "kill -9", {-signal.SIGKILL})

    def kill_in_a_save(self, training: Training) -> None:
        """SIGKILL while a checkpoint is being written, after it has trained a while."""
        if training.until_it_trains():
            self._wait(training, self._rng.uniform(0, 10))
            folder = self.workdir / "checkpoints"
            if training.until(lambda: any(folder.glob("*.orbax-checkpoint-tmp*"))):
                self._wait(training, self._rng.uniform(0, 0.05))
        self._end(training, signal.SIGKILL, "kill -9 in a save", {-signal.SIGKILL})

    def terminate(self, training: Training) -> None:
        """SIGTERM while it trains: it must save its step and say so by its exit status."""
        if training.until_it_trains():
            self._seconds["from start to first step"].append(time.monotonic() - training.began)
            self._wait(training, self._rng.uniform(0, 10))
        began = time.monotonic()
        if self._end(training, signal.SIGTERM, "SIGTERM", {SAVED}):
            self._seconds["from SIGTERM to the end"].append(time.monotonic() - began)
            if last_step(self.workdir) != committed(self.workdir)[-1]:
                raise SystemExit(f"SIGTERM: the current step was not saved:\n{training.said}")

    def fill_the_disk(self, training: Training) -> None:
        """No byte is left while it trains; room again only when it has ended."""
        if training.until_it_trains():
            self._wait(training, self._rng.uniform(0, 5))
        filler = self._place / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
        self._end(training, None, "full disk", {2})
        filler.unlink()

    def leave_alone(self, training: Training) -> None:
        """Waits for its end."""
        if training.process.wait():
            raise SystemExit(f"a run that nobody disturbed failed:\n{training.said}")

    def flip_a_bit(self) -> None:
        """One bit of one file of the newest checkpoint, where there is an older one."""
        steps = committed(self.workdir)
        if len(steps) < 2 or self._flipped is not None:
            return
        folder = self.workdir / "checkpoints" / str(steps[-1])
        names = [n for n, file in json.loads((folder / "sha256.json").read_text())["files"].items()]
        path = folder / self._rng.choice([n for n in names if (folder / n).stat().st_size])
        data = bytearray(path.read_bytes())
        data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
        path.write_bytes(data)
        self._flipped = steps[-1]
        self.counts["flipped bits"] += 1

    def _met_the_damage(self) -> bool:
        """Whether a damaged checkpoint was found and put aside by the process that ran."""
        if self._flipped is None or not any(self.workdir.glob(f"damaged/{self._flipped}-*")):
            return False
        self._flipped = None
        self.counts["flipped bits noticed"] += 1
        return True

    def _wait(self, training: Training, seconds: float) -> None:
        training.until(lambda: False, seconds)

    def _end(self, training: Training, number: int | None, fault: str, allowed: set[int]) -> bool:
        """Sends a signal and waits; False if the process had reached its end before."""
        if number is not None and training.process.poll() is None:
            training.process.send_signal(number)
        try:
            status = training.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            training.process.kill()
            raise SystemExit(f"{fault}: no end in {PATIENCE} s:\n{training.said}") from None
        if status == 0:
            return False
        if status not in allowed:
            raise SystemExit(f"{fault}: exit status {status}:\n{training.said}")
        self.counts[fault] += 1
        return True

    def summary(self) -> dict[str, Any]:
        """Counts, and seconds and steps as median and maximum."""
        if (
            self.counts["flipped bits"] - (self._flipped is not None)
            != self.counts["flipped bits noticed"]
        ):
            raise SystemExit(f"a flipped bit was not noticed: {dict(self.counts)}")
        found: dict[str, Any] = dict(self.counts)
        for name, values in {**self._seconds, "steps trained again": self._again}.items():
            found |= {f"{name}, median": statistics.median(values), f"{name}, most": max(values)}
        return found


if __name__ == "__main__":
    main()
