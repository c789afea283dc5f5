"""The training loop: phases, steps, evaluation, checkpoints. It sees arrays and callables only."""

import contextlib
import functools
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import jax

from clip_italian.batch import Batch
from clip_italian.config import Config
from clip_italian.training import distributed, optim
from clip_italian.training.checkpoint import Checkpoints
from clip_italian.training.cost import Costs, Work, work_of
from clip_italian.training.faults import Examples, Rewind, Watch, check_finite
from clip_italian.training.feed import feed
from clip_italian.training.fellows import Preempted, telling
from clip_italian.training.monitor import Monitor
from clip_italian.training.optim import Phase
from clip_italian.training.parallel import Parallel, micro_batches_of
from clip_italian.training.start import plan, restore, start_state
from clip_italian.training.step import (
    ApplyFn,
    Layout,
    TrainState,
    enter_phase,
    train_step,
)

__all__ = ["compile_step", "plan", "restore", "start_state", "train"]

# First step and the batches of the order that are left out → batches from that step on.
BatchesFrom = Callable[[int, Sequence[int]], Generator[Batch, None, None]]
Evaluator = Callable[[Any], Iterable[tuple[str, float]]]


def compile_step(config: Config, parallel: Parallel, apply_fn: ApplyFn, phase: Phase) -> Callable:
    """The compiled train step of one phase: (state, placed batch) → (state, metrics)."""
    micro_batches = micro_batches_of(config)
    step = functools.partial(
        train_step,
        config=config,
        apply_fn=apply_fn,
        optimizer=plan(config)[0],
        phase=phase,
        layout=Layout(
            shards=parallel.shards,
            axis_name=parallel.axis_name,
            micro_batches=micro_batches,
            gather=parallel.gather,
            scatter=parallel.scatter,
        ),
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
    costs: Costs | None = None,
    examples: Examples | None = None,
) -> tuple[TrainState, dict[str, float]]:
    """Runs from the state's step to the end of the run.

    `faults` says what becomes of steps that go wrong. Closes `checkpoints`, `monitor` and the
    batches, so that the last save is whole however the run ends.

    Args:
      config: a resolved config.
      state: from `start_state`.
      parallel: the layout.
      apply_fn: the model.
      batches_from: first step, batches to leave out → endless batches (numpy, this host's rows).
      evaluate: parameters (their average where one is kept) → (metric, value) pairs.
      checkpoints: where states go.
      monitor: where metrics go.
      costs: FLOPs of the towers, for the monitor's MFU; None leaves it out.
      examples: names them where a step goes wrong.

    Returns:
      The last state and its evaluation.

    Raises:
      Preempted: the processes were told to end; the state is saved.
      FloatingPointError: too many steps went wrong, or the state is not finite; none is saved.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params)
    with contextlib.closing(checkpoints), contextlib.closing(monitor):
        check_finite(state)
        watch = Watch(config, int(state.step), checkpoints, examples)
        _make_up(config, state, evaluate, checkpoints, monitor)
        while True:
            end = _train_on(
                config,
                state,
                parallel=parallel,
                apply_fn=apply_fn,
                batches_from=batches_from,
                evaluate=evaluate,
                checkpoints=checkpoints,
                monitor=monitor,
                costs=costs,
                watch=watch,
            )
            if not isinstance(end, Rewind):
                return end
            state = restore(config, parallel, shapes, checkpoints, end.step)
            checkpoints.delete_after(end.step)
            monitor.go_back(end.step)


def _train_on(
    config: Config,
    state: TrainState,
    *,
    parallel: Parallel,
    apply_fn: ApplyFn,
    batches_from: BatchesFrom,
    evaluate: Evaluator,
    checkpoints: Checkpoints,
    monitor: Monitor,
    costs: Costs | None,
    watch: Watch,
) -> tuple[TrainState, dict[str, float]] | Rewind:
    """Runs to the end, or until the run is to go back.

    Metrics are fetched one step late, so that the device never waits for the host.
    """
    optimizer, phases = plan(config)
    steps, every = config.train.steps, config.train
    first = int(state.step)
    batches = batches_from(first, watch.skipped)
    work = functools.partial(_work, phases, costs)
    fed = feed(batches, first, parallel, config.data.prefetch, work)
    late: tuple[int, dict[str, Any]] | None = None
    compiled: dict[Any, Callable] = {}
    phase: Any = None  # none yet
    results: dict[str, float] | None = None
    closing = contextlib.closing
    # In this order they are left: the thread that feeds ends before its batches are closed.
    with closing(batches), closing(fed), telling():
        for step in range(first, steps):
            if distributed.preempted():
                if late:  # else this step is saved, or was before this process
                    if back := _log_late(monitor, watch, *late, every=every.log_every):
                        return back
                    check_finite(state)
                    checkpoints.save(state, None, watch.saved())
                raise Preempted(step)
            with monitor.waiting_for_data():
                batch = next(fed)
            new_phase = optim.phase_at(phases, step)
            if new_phase != phase:
                phase, compiled = new_phase, {}
                monitor.say(f"step {step}: training {', '.join(phase.moving) or 'nothing'}")
            # Batches come in a few shapes: groups of lengths, or all padded; pixels, or features.
            shapes = str(jax.tree.map(jax.typeof, batch.placed))
            if shapes not in compiled:
                run = compile_step(config, parallel, apply_fn, phase)
                compiled[shapes] = run.lower(state, batch.placed).compile()
                monitor.restart_clock()
            state, metrics = compiled[shapes](state, batch.placed)
            monitor.count_step(batch.work)
            done = step + 1
            if late and (back := _log_late(monitor, watch, *late, every=every.log_every)):
                return back
            late = (done, {**metrics, "batch_digest": batch.digest})

            if optim.phase_at(phases, done) != phase:
                state = enter_phase(state, optimizer, optim.phase_at(phases, done))
                state = parallel.place_state(state)
            evaluated = _is_due(config, done)
            if evaluated or done % every.save_every == 0:
                # What is kept with a state is what the watch knows once it has seen its own loss.
                log_every = 1 if evaluated else every.log_every
                if back := _log_late(monitor, watch, *late, every=log_every):
                    return back
                late = None
                results = _results(evaluate(state.evaluated)) if evaluated else None
                if results is not None:
                    monitor.log(done, results)
                check_finite(state)
                checkpoints.save(state, results, watch.saved())
                if evaluated and results is None:
                    raise Preempted(done)
                monitor.restart_clock()
        if results is None:
            results = dict(evaluate(state.evaluated))
        return state, results


def _is_due(config: Config, done: int) -> bool:
    return done % config.eval.eval_every == 0 or done == config.train.steps


def _make_up(
    config: Config,
    state: TrainState,
    evaluate: Evaluator,
    checkpoints: Checkpoints,
    monitor: Monitor,
) -> None:
    """The evaluation at which an earlier process was told to end: its state alone was saved."""
    done = int(state.step)
    if _is_due(config, done) and checkpoints.lacks_metrics(done):
        monitor.say(f"step {done}: the evaluation that was cut short")
        results = _results(evaluate(state.evaluated))
        if results is None:
            raise Preempted(done)
        monitor.log(done, results)
        checkpoints.add_metrics(done, results)


def _results(values: Iterable[tuple[str, float]]) -> dict[str, float] | None:
    """An evaluation, or None if the processes were told to end in the midst of it."""
    found = {}
    for name, value in values:
        found[name] = value
        if distributed.preempted():
            return None
    return found


def _work(phases: tuple[Phase, ...], costs: Costs | None, step: int, batch: Batch) -> Work | None:
    if costs is None:
        return None
    return work_of(batch, optim.phase_at(phases, step).moving, costs, jax.process_count())


def _log_late(
    monitor: Monitor, watch: Watch, done: int, metrics: Mapping[str, Any], *, every: int
) -> Rewind | None:
    """Fetches the metrics of an earlier step, logs each `every`-th, and has them checked."""
    values = {k: float(v) for k, v in metrics.items() if k != "batch_digest"}
    if done % every == 0:
        numbers = {k: v for k, v in values.items() if math.isfinite(v)}  # JSON has no others
        digest = f"{distributed.total(metrics['batch_digest']):08x}"
        monitor.log(done, {**numbers, "batch_digest": digest, **monitor.rates(done)})
        monitor.restart_clock(done)
    return watch.check(done, values)
