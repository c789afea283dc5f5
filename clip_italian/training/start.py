"""What a run starts from: its optimizer and phases, and a new state or that of a checkpoint."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from clip_italian.config import Config, ConfigError
from clip_italian.training import optim
from clip_italian.training.checkpoint import Checkpoints
from clip_italian.training.optim import Optimizer, Phase
from clip_italian.training.parallel import Parallel
from clip_italian.training.step import TrainState, init_state


def start_state(
    config: Config,
    parallel: Parallel,
    init_params: Callable[[int], Any],
    param_shapes: Callable[[], Any],
    checkpoints: Checkpoints,
) -> TrainState:
    """The state to go on from: the newest checkpoint of the same run, or a new one.

    Args:
      config: a resolved config.
      parallel: the layout.
      init_params: seed → the parameters before step 0; not called to resume.
      param_shapes: their shapes and dtypes; called only to resume.
      checkpoints: of this run.

    Raises:
      ConfigError: the workdir holds another run, or any run and `resume` is "never".
    """
    step = checkpoints.latest_step()
    if step is None:
        optimizer, phases = plan(config)
        seed = config.train.seed
        state = init_state(init_params(seed), optimizer, phases[0], seed)
        return parallel.place_state(state)
    if config.train.resume == "never":
        raise ConfigError(
            f"resume = 'never', but {checkpoints.folder} has a checkpoint of step {step}; "
            "give another --workdir, or --resume auto to continue it"
        )
    checkpoints.check_same_run(step)
    return restore(config, parallel, param_shapes(), checkpoints, step)


def restore(
    config: Config, parallel: Parallel, params: Any, checkpoints: Checkpoints, step: int
) -> TrainState:
    """The state of a checkpoint; of `params` only shapes and dtypes count."""
    optimizer, phases = plan(config)
    phase = optim.phase_at(phases, step)
    like = jax.eval_shape(
        lambda params: init_state(params, optimizer, phase, config.train.seed), params
    )
    return checkpoints.restore(
        step,
        jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            like,
            parallel.state_layout(like),
        ),
    )


def plan(config: Config) -> tuple[Optimizer, tuple[Phase, ...]]:
    """The optimizer and the phases of a resolved config."""
    phases = optim.phases(config.optim)
    if not config.model.learn_logit_scale and config.loss.loss != "sigmoid":
        # A fixed scale and no bias: the group has no parameters, so nothing of it trains.
        phases = tuple(
            dataclasses.replace(p, moving=tuple(g for g in p.moving if g != "logit"))
            for p in phases
        )
    return Optimizer(config.optim, config.model.learn_logit_scale), phases
