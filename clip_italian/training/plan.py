"""The plan of a run (`--dry_run`): phases, parameters, schedules, cost and memory, from shapes."""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from clip_italian.batch import Batch, TokenGroup
from clip_italian.config import GROUPS, Config
from clip_italian.training import losses, optim
from clip_italian.training.loop import plan
from clip_italian.training.optim import Optimizer, Phase
from clip_italian.training.step import ApplyFn, init_state, loss_per_pair

_PAIRS = 8  # a small batch to count with


class Planned(Protocol):
    """What a plan must know of a model."""

    @property
    def image_size(self) -> int:
        """Height and width of its images, in pixels."""
        ...

    def shapes(self) -> Any:
        """The parameter tree as `jax.ShapeDtypeStruct`."""
        ...

    @property
    def apply_pairs(self) -> ApplyFn:
        """One forward pass."""
        ...


def describe_run(config: Config, model: Planned) -> str:
    """The plan of a resolved, valid config as text.

    Needs no weights, data, network or accelerator.
    """
    shapes = model.shapes()
    optimizer, phases = plan(config)
    phases = [phase for phase in phases if phase.start < config.train.steps]
    blocks = [
        _run_lines(config),
        _parameter_table(shapes, optimizer, phases),
        _phase_table(config, shapes, model, optimizer, phases),
        _schedule_table(config, phases),
    ]
    return "\n\n".join(blocks)


def _run_lines(config: Config) -> str:
    steps, size, here = config.train.steps, config.train.batch_size, jax.device_count()
    per_device = " · ".join(f"{size / n:,g} on {n}" for n in sorted({here, 1, 8, 32}))
    return "\n".join(
        [
            f"Run: {steps:,} steps × {size:,} pairs = {steps * size:,} pairs",
            f"Sources: {_mixture(config)}; captions up to {config.data.max_length} tokens",
            f"Loss: {config.loss.loss} over {size:,} pairs; optimizer: {config.optim.optimizer}; "
            f"towers compute in {config.model.dtype}",
            f"Batch per device: {per_device} devices; here: {here} × "
            f"{jax.devices()[0].device_kind}, --parallel {config.train.parallel}",
            f"Evaluation every {config.eval.eval_every:,} steps, checkpoint every "
            f"{config.train.save_every:,}; best by {config.eval.best_metric}",
        ]
    )


def _mixture(config: Config) -> str:
    pairs = zip(config.data.sources, config.data.weights, strict=True)
    return ", ".join(f"{name} × {weight:g}" for name, weight in pairs)


def _parameter_table(shapes: Any, optimizer: Optimizer, phases: Sequence[Phase]) -> str:
    grouped = optim.split(shapes, learn_logit_scale=optimizer.learn_logit_scale)
    rows = []
    for group in (*GROUPS, optim.FIXED):
        if group in grouped:
            starts = [p.start for p in phases if group in p.moving]
            when = f"from step {starts[0]:,}" if starts else "never"
            rows.append([group, f"{_count(grouped[group]):,}", when])
    rows.append(["total", f"{_count(shapes):,}", ""])
    return _table(["group", "parameters", "trains"], rows)


def _phase_table(
    config: Config,
    shapes: Any,
    model: Planned,
    optimizer: Optimizer,
    phases: Sequence[Phase],
) -> str:
    rows, apply_fn = [], model.apply_pairs
    for phase in phases:
        moving, _ = optimizer.split(shapes, phase.moving)
        state = jax.eval_shape(lambda p, phase=phase: init_state(p, optimizer, phase, 0), shapes)
        count = functools.partial(_batch_shapes, config, model.image_size)
        flops = _flops(config, shapes, count(_PAIRS), apply_fn, optimizer, phase) / _PAIRS
        once, twice = (
            _residual_bytes(shapes, count(pairs), apply_fn, optimizer, phase)
            for pairs in (_PAIRS, 2 * _PAIRS)
        )
        kept = (twice - once) / _PAIRS  # the parameters it keeps do not grow with the pairs
        fixed = _bytes(shapes) + _bytes(moving) + _bytes(state.opt_state)
        rows.append(
            [
                f"{phase.start:,}–{min(phase.stop or config.train.steps, config.train.steps):,}",
                ", ".join(phase.moving) or "nothing",
                f"{flops / 1e9:.1f}",
                f"{fixed / 1e9:.2f} GB",
                f"{kept / 1e6:.1f} MB",
                f"{(fixed + kept * config.train.batch_size / jax.device_count()) / 1e9:.1f} GB",
            ]
        )
    heads = ["steps", "training", "GF/pair", "state + gradients", "kept/pair", "memory/device"]
    note = (
        "GF/pair counts a multiply-add as 2. Memory is an estimate: parameters, gradients, moments "
        "and what the\nforward pass keeps for the backward pass; not XLA's own temporaries."
    )
    return f"{_table(heads, rows)}\n{note}"


def _schedule_table(config: Config, phases: Sequence[Phase]) -> str:
    groups = [g for g in GROUPS if any(g in p.moving for p in phases)]
    key_steps = {0, config.train.steps - 1}
    for segment in optim.segments(config.optim):
        start = segment.start_step
        middle = start + (segment.warmup_steps + segment.decay_steps) // 2
        key_steps |= {start, start + segment.warmup_steps, middle, start + segment.decay_steps}
        key_steps |= {start - 1}
    rates = {g: optim.learning_rate(config.optim, g) for g in groups}
    rows = [
        [f"{step:,}", *(f"{float(rates[g](step)):.3g}" for g in groups)]
        for step in sorted(s for s in key_steps if 0 <= s < config.train.steps)
    ]
    return _table(["learning rate at step", *groups], rows)


def _batch_shapes(config: Config, image_size: int, pairs: int) -> Batch:
    def like(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    length = config.data.max_length
    return Batch(
        pixel_values=like(pairs, image_size, image_size, 3, dtype=jnp.uint8),
        text=(TokenGroup(like(pairs, length), like(pairs, length)),),
        image_id=like(pairs, 2),
        caption_id=like(pairs, 2),
    )


def _flops(config, shapes, batch, apply_fn, optimizer, phase) -> float:
    """FLOPs of the loss and its gradient in the moving groups, as XLA counts them."""
    moving, frozen = optimizer.split(shapes, phase.moving)

    def loss(moving, frozen, batch):
        params = optim.join({**frozen, **moving})
        output = apply_fn(params, batch, jax.random.PRNGKey(0), phase.moving, 1)
        return losses.mean_over(loss_per_pair(config, output, batch))

    lowered = jax.jit(jax.value_and_grad(loss)).lower(moving, frozen, batch)
    return (lowered.cost_analysis() or {})["flops"]


def _residual_bytes(shapes, batch, apply_fn, optimizer, phase) -> int:
    """Bytes that the forward pass keeps for the backward pass of the moving groups."""
    moving, frozen = optimizer.split(shapes, phase.moving)

    def backward(moving, frozen, batch):
        def forward(moving):
            params = optim.join({**frozen, **moving})
            output = apply_fn(params, batch, jax.random.PRNGKey(0), phase.moving, 1)
            return output.image_embeds, output.text_embeds

        # The function that `vjp` returns is a pytree whose leaves are what it keeps.
        return jax.vjp(forward, moving)[1]

    return _bytes(jax.eval_shape(backward, moving, frozen, batch))


def _count(tree: Any) -> int:
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        return "  ".join(cells).rstrip()

    return "\n".join([line(heads), line(["-" * w for w in widths]), *map(line, rows)])
