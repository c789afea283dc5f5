"""Checkpoints: the whole state, what it belongs to, and which ones are kept (Orbax)."""

import contextlib
import dataclasses
import functools
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from clip_italian.config import Config, ConfigError, identity, leaves
from clip_italian.training import files, manifest, saved

FORMAT_VERSION = 2  # 1 had no manifest
_NONE, _ALL_DAMAGED = -1, -2  # in place of a step
_DELETED = "deleted"
logger = logging.getLogger(__name__)


def describe(config: Config, data_fingerprint: str) -> dict[str, Any]:
    """What is stored beside the state, as JSON: config, the run's identity and data."""
    return as_json(
        {
            "format_version": FORMAT_VERSION,
            "identity": {**identity(config), "data_fingerprint": data_fingerprint},
            "config": dict(leaves(config)),
            "jax": jax.__version__,
        }
    )


def check_same_run(saved: Mapping[str, Any], current: Mapping[str, Any], where: str) -> None:
    """Refuses to continue another run; logs the fields that may change and did.

    Raises:
      ConfigError: names each identity field that differs, with both values.
    """
    if saved["format_version"] > FORMAT_VERSION:
        raise ConfigError(
            f"workdir: {where} was written by a newer version (checkpoint format "
            f"{saved['format_version']}, this one reads up to {FORMAT_VERSION}); upgrade to go on"
        )
    changed = _changes(saved["identity"], current["identity"])
    if changed:
        hint = " To lengthen a run, give the old decay_steps." if "decay_steps" in changed else ""
        raise ConfigError(
            f"workdir: {where} holds a run of another config: {changed}. "
            f"Give these values again to continue it, or another --workdir to start anew.{hint}"
        )
    moved = _changes(saved["config"], current["config"])
    if moved:
        logger.info("continuing with changed fields: %s", moved)


def _changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    # A field that did not exist then has its default now.
    defaults = as_json(dict(leaves(Config())))
    saved = {**{name: defaults.get(name) for name in current}, **saved}
    return "; ".join(
        f"{name} was {saved.get(name)!r}, is {current.get(name)!r}"
        for name in sorted({*saved, *current})
        if saved.get(name) != current.get(name)
    )


def as_json(tree: Any) -> Any:
    """Config values as they come back from JSON."""
    return json.loads(json.dumps(tree, default=dataclasses.asdict))


def _parts(state: Any) -> dict[str, Any]:
    """A state's parts by name; those that it does not keep are absent, as they were before."""
    return {name: part for name, part in state._asdict().items() if part is not None}


class _Manager(ocp.CheckpointManager):
    """Orbax's, but only the loop asks for preemptions: JAX counts the questions."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run folder, written asynchronously to `<workdir>/checkpoints/<step>`.

    Keeps the latest `keep_checkpoints` and the best one by `best_metric` (higher is better). Each
    is sealed (see `manifest`) before it counts, and what an earlier save left unfinished is deleted
    once the folder is used.
    """

    def __init__(self, config: Config, data_fingerprint: str):
        """Of a resolved config's run on these data; touches no file."""
        workdir = config.train.workdir
        self._description = describe(config, data_fingerprint)
        folder = epath.Path(workdir) / "checkpoints"
        self.folder = folder if "://" in workdir else folder.resolve()
        self._best_metric = config.eval.best_metric
        self._keep = config.train.keep_checkpoints
        self._step, self._saving = -1, "checkpoints"  # what is being written, as a message says it

    # Made late: it cannot be made over a damaged file of metrics, which `latest_step` sets aside.
    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        policies = ocp.checkpoint_managers

        def score(metrics: Mapping[str, float]) -> float:
            return metrics[self._best_metric]

        return _Manager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(self._keep),
                        policies.BestN(
                            get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
                best_fn=score,  # Only with it are metrics written at all.
                cleanup_tmp_directories=True,
                # Moved at one stroke, and deleted later: a kill leaves no half of a checkpoint.
                todelete_subdir=_DELETED,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def _seal(self) -> None:
        """Called on process 0 when the files of all are there and it does not count yet."""
        # A local folder has not its final name; a remote one has it, and is not marked as whole.
        unfinished = list(self.folder.glob(f"{self._step}.orbax-checkpoint-tmp*"))
        for folder in unfinished or [self.folder / str(self._step)]:
            manifest.write(folder)

    def latest_step(self) -> int | None:
        """The newest checkpoint whose files are as they were saved, or None if there is none.

        Damaged ones are moved to `damaged/` in the run folder, with a warning. Process 0 decides
        for all.

        Raises:
          ConfigError: there are checkpoints, and all of them are damaged. They stay where they are,
            so that no later start begins anew either.
        """
        found = self._newest_whole() if jax.process_index() == 0 else _NONE
        step = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        if step == _ALL_DAMAGED:
            raise ConfigError(
                f"workdir: all checkpoints in {self.folder} are damaged; copy one of them again "
                "from where it is whole, or give another --workdir to start anew"
            )
        with self._explaining():
            self._clear()
            _ = self._manager  # makes the folder; deletes what an earlier save left unfinished
        return None if step == _NONE else step

    def _newest_whole(self) -> int:
        step, damaged = saved.newest_whole(self.folder, older=True)
        if step is None:
            return _ALL_DAMAGED if damaged else _NONE
        for bad in damaged:
            aside = self.folder.parent / "damaged" / f"{bad}-{time.time_ns()}"
            aside.parent.mkdir(parents=True, exist_ok=True)
            (self.folder / str(bad)).rename(aside)
            logger.warning("the checkpoint of step %d lies in %s now", bad, aside)
        return step

    def best(self) -> tuple[int, float] | None:
        """(step, value) of the best checkpoint by the metric, or None if none was evaluated."""
        with self._explaining():
            self._manager.wait_until_finished()
        return saved.best(self.folder, self._best_metric)

    def save(self, state: Any, metrics: Mapping[str, float] | None, faults: Any = None) -> None:
        """Starts to save `state` at its own step; its structure is that of its step's phase.

        `faults` is kept beside it as JSON: what the run knew of its faults, see `faults.Watch`.

        Raises:
          SaveError: this save or the one before it failed: no room, no permission, ...
        """
        chosen = (metrics or {}).get(self._best_metric)
        with self._explaining():
            self._manager.wait_until_finished()
            self._clear()
            self._step = int(state.step)
            size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
            room = files.room(self.folder, size)
            self._saving = f"the checkpoint of step {self._step}, which needs {room}"
            self._manager.save(
                self._step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_parts(state)),
                    run=ocp.args.JsonSave({**self._description, "faults": faults or {}}),
                ),
                metrics=None if chosen is None else {self._best_metric: float(chosen)},
            )

    def lacks_metrics(self, step: int) -> bool:
        """Whether there is a checkpoint of `step`, saved without metrics. Process 0 decides."""
        lacks = step in saved.steps(self.folder) and not saved.metrics(self.folder, step)
        return bool(multihost_utils.broadcast_one_to_all(np.int32(lacks)))

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics into a finished checkpoint that lacks them, as `save` would have.

        Raises:
          SaveError: there is no room for them, or no permission, ...
        """
        chosen = metrics.get(self._best_metric)
        if chosen is not None and jax.process_index() == 0:
            folder = self.folder / str(step)
            # Until the new manifest is there nobody sealed them: whole either way.
            files.write(folder / saved.METRICS, json.dumps({self._best_metric: float(chosen)}))
            manifest.write(folder)
        multihost_utils.sync_global_devices("metrics are added")
        self._manager.reload()

    def _clear(self) -> None:
        """Deletes what is no longer kept."""
        place = self.folder / _DELETED
        if jax.process_index() == 0 and place.exists():
            place.rmtree()

    def _explaining(self) -> contextlib.AbstractContextManager[None]:
        """Says of errors of the file system what was being written."""
        return files.explaining(self.folder, lambda: self._saving)

    def check_same_run(self, step: int) -> None:
        """Raises `ConfigError` if the checkpoint at `step` belongs to another run."""
        check_same_run(self._saved(step), self._description, str(self.folder))

    def _saved(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(run=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["run"]

    def steps(self) -> list[int]:
        """The steps of all checkpoints, oldest first, once the last save is whole."""
        with self._explaining():
            self._manager.wait_until_finished()
        return sorted(self._manager.all_steps())

    def faults(self, step: int) -> dict[str, Any]:
        """What `save` was given as `faults` at `step`; empty without such a checkpoint."""
        return self._saved(step).get("faults", {}) if step in self.steps() else {}

    def delete_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps: a run that went back writes them anew."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def restore(self, step: int, like: Any) -> Any:
        """The state at `step`; `like` gives structure, shapes, dtypes and layout of each leaf."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_parts(like)))
        return type(like)(**self._manager.restore(step, args=args)["state"])

    def close(self) -> None:
        """Waits until the last save is whole.

        Raises:
          SaveError: it failed.
        """
        if "_manager" not in self.__dict__:
            return
        with self._explaining():
            try:
                self._manager.wait_until_finished()
                self._clear()
            finally:
                self._manager.close()
