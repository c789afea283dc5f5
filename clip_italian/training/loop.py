"""The training loop: phases, steps, evaluation, checkpoints. It sees arrays and callables only."""

import contextlib
import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from clip_italian.batch import Batch
from clip_italian.config import Config, ConfigError
from clip_italian.training import optim
from clip_italian.training.checkpoint import Checkpoints
from clip_italian.training.monitor import Monitor
from clip_italian.training.optim import Optimizer, Phase
from clip_italian.training.parallel import Parallel
from clip_italian.training.step import ApplyFn, TrainState, enter_phase, init_state, train_step

BatchesFrom = Callable[[int], Generator[Batch, None, None]]
Evaluator = Callable[[Any], Iterable[tuple[str, float]]]


def start_state(
    config: Config,
    parallel: Parallel,
    init_params: Callable[[], Any],
    param_shapes: Callable[[], Any],
    checkpoints: Checkpoints,
) -> TrainState:
    """The state to go on from: the newest checkpoint of the same run, or a new one.

    Args:
      config: a resolved config.
      parallel: the layout.
      init_params: makes the parameters before step 0; not called to resume.
      param_shapes: their shapes and dtypes; called only to resume.
      checkpoints: of this run.

    Raises:
      ConfigError: the workdir holds another run, or any run and `resume` is "never".
    """
    optimizer, phases = plan(config)
    step = checkpoints.latest_step()
    if step is None:
        state = init_state(init_params(), optimizer, phases[0], config.train.seed)
        return parallel.replicate(state)
    if config.train.resume == "never":
        raise ConfigError(
            f"resume = 'never', but {checkpoints.folder} has a checkpoint of step {step}; "
            "give another --workdir, or --resume auto to continue it"
        )
    checkpoints.check_same_run(step)
    phase = optim.phase_at(phases, step)
    like = jax.eval_shape(
        lambda params: init_state(params, optimizer, phase, config.train.seed), param_shapes()
    )
    return checkpoints.restore(
        step,
        jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parallel.replicated), like
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


def compile_step(config: Config, parallel: Parallel, apply_fn: ApplyFn, phase: Phase) -> Callable:
    """The compiled train step of one phase: (state, placed batch) → (state, metrics)."""
    step = functools.partial(
        train_step,
        config=config,
        apply_fn=apply_fn,
        optimizer=plan(config)[0],
        phase=phase,
        shards=parallel.shards,
        axis_name=parallel.axis_name,
    )
    return parallel.compile(step)


def train(
    config: Config,
    state: TrainState,
    *,
    parallel: Parallel,
    apply_fn: ApplyFn,
    batches_from: BatchesFrom,
    evaluate: Evaluator,
    checkpoints: Checkpoints,
    monitor: Monitor,
) -> tuple[TrainState, dict[str, float]]:
    """Runs from the state's step to the end of the run.

    Metrics are fetched one step late, so that the device never waits for the host. Closes
    `checkpoints`, `monitor` and the batches, so that the last save is whole however the run ends.

    Args:
      config: a resolved config.
      state: from `start_state`.
      parallel: the layout.
      apply_fn: the model.
      batches_from: first step → endless batches (numpy, this host's rows) from that step on.
      evaluate: parameters → (metric, value) pairs.
      checkpoints: where states go.
      monitor: where metrics go.

    Returns:
      The last state and its evaluation.

    Raises:
      FloatingPointError: the loss is not finite; no checkpoint holds that step.
    """
    optimizer, phases = plan(config)
    steps, every = config.train.steps, config.train
    first = int(state.step)
    batches = batches_from(first)
    late: tuple[int, dict[str, Any]] | None = None
    compiled: Any = None
    phase: Phase | None = None
    results: dict[str, float] | None = None
    closing = contextlib.closing
    with closing(checkpoints), closing(monitor), closing(batches):
        for step in range(first, steps):
            with monitor.waiting_for_data():
                batch = next(batches)
            placed = parallel.place(batch)
            new_phase = optim.phase_at(phases, step)
            if new_phase != phase:
                phase = new_phase
                monitor.say(f"step {step}: training {', '.join(phase.moving) or 'nothing'}")
                compiled = compile_step(config, parallel, apply_fn, phase)
                compiled = compiled.lower(state, placed).compile()
                monitor.flops_per_step = _flops(compiled, parallel)
                monitor.restart_clock()
            state, metrics = compiled(state, placed)
            monitor.count_step()
            done = step + 1
            if late:
                _log_late(monitor, *late, every=every.log_every)
            late = (done, {**metrics, "batch_digest": batch_digest(batch)})

            if optim.phase_at(phases, done) != phase:
                state = enter_phase(state, optimizer, optim.phase_at(phases, done))
                state = parallel.replicate(state)
            evaluated = done % config.eval.eval_every == 0 or done == steps
            if evaluated or done % every.save_every == 0:
                # A state is saved only once its own loss is known to be finite.
                _log_late(monitor, *late, every=1 if evaluated else every.log_every)
                late = None
                results = dict(evaluate(state.params)) if evaluated else None
                if results is not None:
                    monitor.log(done, results)
                checkpoints.save(state, results)
                monitor.restart_clock()
        if results is None:
            results = dict(evaluate(state.params))
        return state, results


def batch_digest(batch: Batch) -> str:
    """CRC-32 of the batch's image and caption ids, in order: equal digests, equal examples."""
    ids = np.concatenate([batch.image_id, batch.caption_id], axis=1)
    return f"{zlib.crc32(ids.tobytes()):08x}"


def _flops(compiled: Any, parallel: Parallel) -> float | None:
    """FLOPs of a step over all devices, as the compiler counts them for one of them."""
    analysis = compiled.cost_analysis() or {}
    found = analysis.get("flops")
    return found * parallel.devices if found and found > 0 else None


def _log_late(monitor: Monitor, done: int, metrics: Mapping[str, Any], *, every: int) -> None:
    """Fetches the metrics of an earlier step, checks them, and logs each `every`-th."""
    digest = metrics["batch_digest"]
    values = {k: float(v) for k, v in metrics.items() if k != "batch_digest"}
    if not math.isfinite(values["train/loss"]) or not math.isfinite(values["train/grad_norm"]):
        raise FloatingPointError(
            f"loss {values['train/loss']} and gradient norm {values['train/grad_norm']} at step "
            f"{done} (batch {digest}): lower the learning rate or clip the gradient (agc_clip, "
            "clip_norm); the last checkpoint is from before this step"
        )
    if done % every == 0:
        monitor.log(done, {**values, "batch_digest": digest, **monitor.rates()})
        monitor.restart_clock()
