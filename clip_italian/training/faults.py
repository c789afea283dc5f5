"""Steps that went wrong: they are named, counted, written down, and, where asked for, taken back.

`<workdir>/faults.jsonl` has one JSON line for each fault. `step` is the number of steps done, as in
`metrics.jsonl`; numbers that are not finite are strings. `fault` is one of

    non-finite      the step left the state as it was: `loss`, `grad_norm`, `in_a_row`, `examples`
    spike           `loss`, `limit`, `examples`
    rewind          the run went back to `step`: `from_step`, `cause`, `skipped` (batches of the
                    order that are left out from then on), `examples` (of the step at fault)
    broken record   `record`, `reason`

Process N of several writes the broken records that it has met to `faults.N.jsonl`; process 0 writes
its own and all other faults to `faults.jsonl`.
"""

import collections
import json
import logging
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from etils import epath

from clip_italian.batch import batch_number
from clip_italian.config import Config
from clip_italian.training import files, saved
from clip_italian.training.checkpoint import Checkpoints
from clip_italian.training.fellows import is_first
from clip_italian.training.monitor import drop_lines

FAULTS_FILE = "faults.jsonl"
IN_A_ROW = 10  # bad steps that end a run
REWINDS = 10  # after which a run ends instead
# Losses that are compared with, fewest of them, and how far above them a spike is: seven standard
# deviations, as in OLMo 2's spike score (arXiv 2501.00656), which robust estimates stand for here.
WINDOW, FEWEST, DEVIATIONS = 100, 50, 7.0
# Steps before a spike that may have caused it (arXiv 2304.13013: moments that had become too small
# made updates too large 1 to 8 steps before the loss rose), and after it that say nothing new.
BEFORE, AFTER = 8, 10
_NAMED = 20  # examples in a message

logger = logging.getLogger(__name__)


class Examples(Protocol):
    """What the data can say of examples."""

    def names_of(self, step: int, skipped: Sequence[int]) -> list[str]:
        """`source/image_id` of the global batch of a step, whatever host asks."""
        ...

    @property
    def broken(self) -> Sequence[tuple[str, str]]:
        """(name, reason) of the records that this host found broken so far."""
        ...


class Rewind(NamedTuple):
    """Where a run goes back to.

    Attributes:
      step: of the checkpoint.
      skipped: batches of the order that are left out from then on; all of them.
    """

    step: int
    skipped: tuple[int, ...]


class Watch:
    """Looks at each step's numbers once they are known.

    What it decides rests on the steps so far alone, for what it remembers is kept with each
    checkpoint: a resumed run finds the same faults. All hosts decide alike; process 0 writes that.

    Attributes:
      skipped: batches of the order that the run leaves out.
    """

    def __init__(
        self,
        config: Config,
        first_step: int,
        checkpoints: Checkpoints,
        examples: Examples | None = None,
    ) -> None:
        """Goes on from `first_step` steps done.

        Args:
          config: a resolved config.
          first_step: at which the process starts.
          checkpoints: of the run; that of `first_step` says what was known then.
          examples: names examples; None leaves them unnamed.
        """
        self._config, self._first, self._checkpoints = config, first_step, checkpoints
        self._examples = examples
        self._path = _path(config.train.workdir, jax.process_index())
        self.skipped: tuple[int, ...] = ()
        self._rewinds = 0
        self._remember(checkpoints.faults(first_step))
        known = set(self.skipped)
        drop_lines(
            self._path,
            lambda line: (
                not known.issuperset(line["skipped"])
                if line["fault"] == "rewind"
                else line["step"] > first_step
            ),
        )
        found = read_faults(config.train.workdir, jax.process_index())
        self._written = {line["record"] for line in found if "record" in line}

    def _remember(self, saved: Mapping[str, Any]) -> None:
        self.skipped = tuple(saved.get("skipped", self.skipped))
        self._rewinds = saved.get("rewinds", self._rewinds)
        self._losses = collections.deque[float](saved.get("losses", ()), maxlen=WINDOW)
        self._bad, self._spiked = saved.get("bad", 0), saved.get("spiked", -AFTER)

    def saved(self) -> dict[str, Any]:
        """What is kept with a checkpoint, as JSON."""
        return {
            "skipped": list(self.skipped),
            "rewinds": self._rewinds,
            "losses": list(self._losses),
            "bad": self._bad,
            "spiked": self._spiked,
        }

    def check(self, done: int, values: Mapping[str, float]) -> Rewind | None:
        """Takes in the metrics of a step; says where to go back to, if the run is to.

        Args:
          done: number of steps done with it; called for each, in order.
          values: its metrics.

        Raises:
          ConfigError: the checkpoint to go back to is damaged.
          FloatingPointError: `IN_A_ROW` bad steps, or one more fault after `REWINDS` rewinds.
          SaveError: there is no room to write a fault down, or no permission, ...
        """
        self._note_broken(done)
        loss = values["train/loss"]
        if values["train/skipped"]:
            self._bad += 1
            cause, norm = "non-finite", values["train/grad_norm"]
            numbers = {"loss": loss, "grad_norm": norm, "in_a_row": self._bad}
            said = f"loss {loss} and gradient norm {norm} at step {done}: the step is left out"
        else:
            self._bad = 0
            limit = spike_limit(self._losses)
            self._losses.append(loss)
            if limit is None or loss <= limit or done < self._spiked + AFTER:
                return None
            self._spiked = done
            cause, numbers = "spike", {"loss": loss, "limit": limit}
            said = f"the loss rose to {loss:.4g} at step {done}; {limit:.4g} would be unusual"
        names = self._names(done - 1)
        rewind = self._rewind(done, BEFORE if cause == "spike" else 0)
        if rewind is None:
            self._say({"step": done, "fault": cause, **numbers, "examples": names})
            _warn(f"{said} (examples: {_some(names)})")
        if self._bad == IN_A_ROW and rewind is None:
            start = done - IN_A_ROW + 1
            raise FloatingPointError(
                self._ending(f"{IN_A_ROW} bad steps in a row, {start} to {done}: {said}")
            )
        if rewind is not None:
            if self._rewinds == REWINDS:
                raise FloatingPointError(self._ending(f"{said}, after {REWINDS} rewinds"))
            self._go_back(rewind, {"from_step": done, "cause": cause, **numbers, "examples": names})
            _warn(f"{said} (examples: {_some(names)}); going back to step {rewind.step}")
        return rewind

    def _names(self, step: int) -> list[str]:
        if self._examples is None or not is_first():
            return []  # process 0 alone says them
        return self._examples.names_of(step, self.skipped)

    def _rewind(self, done: int, behind: int) -> Rewind | None:
        """From a fault at step `done` that began up to `behind` steps before."""
        if not self._config.train.rewind:
            return None
        # Cached features of a tower that moves by now are not there any more.
        floor = self._first if self._config.data.cached_views else 0
        steps = [step for step in self._checkpoints.steps() if floor <= step < done]
        if not steps:
            return None
        begin = done - 1 - behind
        step = max((step for step in steps if step <= begin), default=min(steps))
        numbers = (batch_number(s, self.skipped) for s in range(max(step, begin), done))
        return Rewind(step, (*self.skipped, *numbers))

    def _go_back(self, rewind: Rewind, facts: Mapping[str, Any]) -> None:
        saved.check(self._checkpoints.folder, rewind.step)
        rewinds = self._rewinds + 1
        new = rewind.skipped[len(self.skipped) :]
        self._remember(self._checkpoints.faults(rewind.step))
        self.skipped, self._rewinds = rewind.skipped, rewinds
        # What is known to be broken stays so, and is not met anew.
        comes_again = ("non-finite", "spike")
        drop_lines(
            self._path, lambda line: line["fault"] in comes_again and line["step"] > rewind.step
        )
        self._say({"step": rewind.step, "fault": "rewind", "skipped": new, **facts})

    def _note_broken(self, done: int) -> None:
        """Writes down the broken records that this process has met: each has its own share."""
        for name, reason in self._examples.broken if self._examples else ():
            if name not in self._written:
                self._written.add(name)
                line = {"step": done, "fault": "broken record", "record": name, "reason": reason}
                self._write(line)

    def _ending(self, what: str) -> str:
        newest = max(self._checkpoints.steps(), default=None)
        kept = "none is written yet" if newest is None else f"the newest is of step {newest}"
        hint = "" if self._config.train.rewind else ", or rewind = True in the config file"
        return (
            f"{what}. No bad step has changed a parameter, or a checkpoint in "
            f"{self._checkpoints.folder} ({kept}, where the same command goes on); the examples "
            f"are in {self._path}. If the data are sound, start in another --workdir with a lower "
            f"learning_rate or with clip_norm{hint}"
        )

    def _say(self, line: Mapping[str, Any]) -> None:
        """Writes down what all processes have decided alike."""
        if is_first():
            self._write(line)

    def _write(self, line: Mapping[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        files.append(self._path, json.dumps({k: _readable(v) for k, v in line.items()}) + "\n")


def _path(workdir: str, process: int) -> epath.Path:
    name = epath.Path(FAULTS_FILE)
    return epath.Path(workdir) / (f"{name.stem}.{process}{name.suffix}" if process else name)


def read_faults(workdir: str, process: int = 0) -> list[dict[str, Any]]:
    """All faults that a process of a run wrote down, oldest first; empty if there are none."""
    path = _path(workdir, process)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def spike_limit(losses: Collection[float]) -> float | None:
    """The loss above which a step is a spike; None while too few are known.

    Median and median absolute deviation of the last losses: earlier spikes hardly move them. A
    deviation counts as 1% of the loss at least, so that a loss that stands still can move again.
    """
    if len(losses) < FEWEST:
        return None
    middle = statistics.median(losses)
    spread = statistics.median(abs(loss - middle) for loss in losses)
    # 1.4826: of a normal distribution, to its standard deviation.
    return middle + DEVIATIONS * max(1.4826 * spread, 0.01 * abs(middle))


def check_finite(state: Any) -> None:
    """Raises `FloatingPointError`, naming a leaf, if a state is not finite throughout."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    # A program for each shape: one for a thousand leaves takes longer to compile than a save may.
    for (path, _), finite in zip(leaves, [_finite(leaf) for _, leaf in leaves], strict=True):
        if not finite:
            raise FloatingPointError(
                f"{jax.tree_util.keystr(path)} is not finite at step {int(state.step)}, so nothing "
                "is trained from there or saved; the weights that the run began with may be damaged"
            )


@jax.jit
def _finite(leaf: jax.Array) -> jax.Array:
    # A zero times what is not finite is NaN, and a sum of floats takes less than a test of each.
    return jnp.isfinite(jnp.sum(leaf * 0))


def _readable(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _some(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _NAMED} more in {FAULTS_FILE}"] if len(names) > _NAMED else []
    return ", ".join([*names[:_NAMED], *more]) or "unknown"


def _warn(text: str) -> None:
    if is_first():
        logger.warning(text)
