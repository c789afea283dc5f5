"""Checkpoints: the whole state, what it belongs to, and which ones are kept (Orbax)."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from clip_italian.config import Config, ConfigError, identity, leaves

FORMAT_VERSION = 1
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


class Checkpoints:
    """The checkpoints of one run folder, written asynchronously to `<workdir>/checkpoints/<step>`.

    Keeps the latest `keep_checkpoints` and the best one by `best_metric` (higher is better).
    """

    def __init__(self, config: Config, data_fingerprint: str):
        """Opens or makes the folder of a resolved config's run on these data."""
        workdir, policies = config.train.workdir, ocp.checkpoint_managers
        best_metric = config.eval.best_metric
        self._description = describe(config, data_fingerprint)
        self.folder = epath.Path(workdir) / "checkpoints"
        self._best_metric = best_metric

        def score(metrics: Mapping[str, float]) -> float:
            return metrics[best_metric]

        self._manager = ocp.CheckpointManager(
            self.folder.resolve() if "://" not in workdir else self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(config.train.keep_checkpoints),
                        policies.BestN(
                            get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
                best_fn=score,  # Only with it are metrics written at all.
                cleanup_tmp_directories=True,
            ),
        )

    def latest_step(self) -> int | None:
        """The newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def best(self) -> tuple[int, float] | None:
        """(step, value) of the best checkpoint by the metric, or None if none was evaluated."""
        self._manager.wait_until_finished()
        scored = [
            (metrics[self._best_metric], step)
            for step in self._manager.all_steps()
            if (metrics := self._manager.metrics(step)) and self._best_metric in metrics
        ]
        if not scored:
            return None
        value, step = max(scored)
        return step, value

    def save(self, state: Any, metrics: Mapping[str, float] | None, faults: Any = None) -> None:
        """Starts to save `state` at its own step; its structure is that of its step's phase.

        `faults` is kept beside it as JSON: what the run knew of its faults, see `faults.Watch`.
        """
        description = {**self._description, "faults": faults or {}}
        chosen = (metrics or {}).get(self._best_metric)
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_parts(state)), run=ocp.args.JsonSave(description)
            ),
            metrics=None if chosen is None else {self._best_metric: float(chosen)},
        )

    def check_same_run(self, step: int) -> None:
        """Raises `ConfigError` if the checkpoint at `step` belongs to another run."""
        check_same_run(self._saved(step), self._description, str(self.folder))

    def _saved(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(run=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["run"]

    def steps(self) -> list[int]:
        """The steps of all checkpoints, oldest first, once the last save is whole."""
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
        """Waits until the last save is whole."""
        self._manager.wait_until_finished()
        self._manager.close()
