"""Which checkpoint of a run, and its parameters."""

import dataclasses
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from clip_italian.config import Config, ConfigError, ModelConfig
from clip_italian.training import saved
from clip_italian.training.checkpoint import FORMAT_VERSION, describe

# Fields that decide what the parameters mean.
_MEANING = (*(field.name for field in dataclasses.fields(ModelConfig)), "loss", "max_length")


def restore(
    folder: str, choice: str, config: Config, shapes: dict[str, Any]
) -> tuple[int, dict[str, Any]]:
    """Reads one checkpoint of a run, without its optimizer state; changes no file.

    Args:
      folder: of the run.
      choice: a step, "best", or empty for the newest whole checkpoint.
      config: the run's own.
      shapes: its parameters' tree of shapes.

    Returns:
      The chosen step and its parameters (their average, where it keeps one) as numpy arrays.

    Raises:
      ConfigError: it is missing, damaged, of a newer version, or not that config's.
    """
    place = epath.Path(folder).resolve() / "checkpoints"
    if not place.is_dir():
        raise ConfigError(f"{folder} holds no folder `checkpoints`; name the folder of a run")
    step = _choose(place, folder, choice, config.eval.best_metric)
    # Neither makes nor cleans up anything: the run may still be training and writing here. Nor
    # does it read the metrics of other steps, which may be damaged.
    options = ocp.CheckpointManagerOptions(
        create=False, cleanup_tmp_directories=False, lightweight_initialize=True
    )
    with ocp.CheckpointManager(place, options=options) as manager:
        run = manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
        _check(run, config, f"{folder}, step {step}")
        leaf = ocp.RestoreArgs(restore_type=np.ndarray)
        part = "ema" if config.optim.ema_decay else "params"
        wanted = ocp.args.PyTreeRestore(
            item={part: shapes},
            restore_args={part: jax.tree.map(lambda _: leaf, shapes)},
            partial_restore=True,
        )
        state = manager.restore(step, args=ocp.args.Composite(state=wanted))["state"]
    return step, state[part]


def _choose(place: epath.Path, folder: str, choice: str, metric: str) -> int:
    """The step, whose files are as they were saved: asked for none, the newest of which that holds.

    A damaged one that was asked for is an error: another one would pass for it.
    """
    steps = saved.steps(place)
    if choice == "best":
        for step in steps:
            saved.check(place, step, quick=True)  # whose metrics decide
        found = saved.best(place, metric)
        if found is None:
            raise ConfigError(f"{folder}: no checkpoint has been evaluated by {metric!r}")
        choice = str(found[0])
    if not steps:
        raise ConfigError(f"{folder} holds no whole checkpoint yet")
    if not choice:
        newest, damaged = saved.newest_whole(place)
        if newest is None:
            raise ConfigError(f"all checkpoints of {folder} are DAMAGED: steps {sorted(damaged)}")
        return newest
    step = int(choice)
    if step not in steps:
        raise ConfigError(f"{folder} holds no checkpoint of step {step}; it has {steps}")
    saved.check(place, step)
    return step


def _check(saved: dict[str, Any], config: Config, where: str) -> None:
    """Refuses a newer format, and a `config.py` that is not the checkpoint's."""
    if saved["format_version"] > FORMAT_VERSION:
        raise ConfigError(
            f"{where} was written by a newer version (checkpoint format "
            f"{saved['format_version']}, this one reads up to {FORMAT_VERSION}); upgrade to read it"
        )
    then, now = saved["config"], describe(config, "")["config"]
    # A field that did not exist then has its default now.
    changed = [name for name in _MEANING if name in then and then[name] != now[name]]
    if changed:
        raise ConfigError(
            f"{where} does not belong to the config.py beside it: {', '.join(changed)} differ"
        )
