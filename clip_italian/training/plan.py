"""The plan of a run (`--dry_run`): phases, parameters, schedules, cost and memory, from shapes."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from clip_italian.batch import Batch, TokenGroup
from clip_italian.config import GROUPS, Config
from clip_italian.training import cost, optim
from clip_italian.training.cost import Costs
from clip_italian.training.loop import plan
from clip_italian.training.optim import Optimizer, Phase
from clip_italian.training.step import ApplyFn, init_state

_PAIRS = 8  # a small batch to count with


class Lengths(Protocol):
    """How long the captions are, where the records are at hand."""

    @property
    def mean(self) -> float:
        """Real tokens of a caption, over the mixture."""
        ...

    @property
    def padded(self) -> float:
        """Tokens of a caption with its padding, over the groups of a batch."""
        ...

    @property
    def text(self) -> str:
        """The groups, in words."""
        ...


class Planned(Costs, Protocol):
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


def describe_run(config: Config, model: Planned, lengths: Lengths | None = None) -> str:
    """The plan of a resolved, valid config as text.

    Needs no weights, data, network or accelerator.

    Args:
      config: of the run.
      model: of the run.
      lengths: of its captions; None takes every caption for `max_length` long.
    """
    shapes = model.shapes()
    optimizer, phases = plan(config)
    phases = [phase for phase in phases if phase.start < config.train.steps]
    blocks = [
        _run_lines(config),
        lengths.text if lengths else "",
        _parameter_table(shapes, optimizer, phases),
        _phase_table(config, shapes, model, optimizer, phases, lengths),
        _schedule_table(config, phases),
        _layer_table(config, shapes, phases),
    ]
    return "\n\n".join(filter(None, blocks))


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
    lengths: Lengths | None,
) -> str:
    most = config.data.max_length
    real, padded = (lengths.mean, lengths.padded) if lengths else (most, most)
    rows = []
    for phase in phases:
        cached = _cached(config, phases, phase)
        flops = _flops(model, phase, cached, real)
        kept = _kept_per_pair(shapes, model, optimizer, phase, round(padded))
        pixels = 0 if "vision" in cached else 3 * model.image_size**2
        fixed = _state_bytes(config, shapes, optimizer, phase)
        rows.append(
            [
                f"{phase.start:,}–{min(phase.stop or config.train.steps, config.train.steps):,}",
                ", ".join(phase.moving) or "nothing",
                f"{flops / 1e9:.1f}",
                f"{fixed / 1e9:.2f} GB",
                f"{kept / 1e6:.1f} MB",
                f"{(fixed + _batch_bytes(config, kept, pixels)) / 1e9:.1f} GB",
            ]
        )
    heads = ["steps", "training", "GF/pair", "state + gradients", "kept/pair", "memory/device"]
    captions = f"{real:.1f} tokens, the mean" if lengths else f"{most} tokens, the longest"
    note = (
        f"GF/pair: both towers at {captions}; 2 for a multiply-add, 3 × forward where a\n"
        "tower moves, 0 where it is cached. Memory is an estimate: parameters, gradients, moments, "
        "batches\nahead, and what the forward pass keeps for the backward pass; not XLA's own "
        "temporaries."
    )
    return f"{_table(heads, rows)}\n{note}"


def _cached(config: Config, phases: Sequence[Phase], phase: Phase) -> set[str]:
    """Towers whose outputs are read from files: those that have not moved up to this phase."""
    moved = {group for one in phases if one.start <= phase.start for group in one.moving}
    return {"vision", "text"} - moved if config.data.cached_views else set()


def _flops(model: Planned, phase: Phase, cached: set[str], tokens: float) -> float:
    """Model FLOPs of one pair."""
    image = cost.image_flops(phase.moving, model)
    text = cost.text_flops(np.array([tokens]), phase.moving, model)
    return image * ("vision" not in cached) + text * ("text" not in cached)


def _state_bytes(config: Config, shapes: Any, optimizer: Optimizer, phase: Phase) -> float:
    """Parameters, their average, moments and gradients, on one device."""
    state = jax.eval_shape(lambda params: init_state(params, optimizer, phase, 0), shapes)
    gradients = _bytes(optimizer.split(shapes, phase.moving)[0])
    if not config.train.shard_params:
        return _bytes(state) + gradients
    # Each device keeps a part; for the step it gathers the parameters and makes whole gradients.
    return _bytes(state) / jax.device_count() + _bytes(shapes) + gradients


def _batch_bytes(config: Config, kept: float, pixels: int) -> float:
    """What grows with the batch, on one device: its pictures, and what a micro-batch keeps."""
    pairs = config.train.batch_size
    ahead = pixels * pairs * (2 + config.data.prefetch)  # in use, waiting, and on its way
    return (ahead + kept * (config.train.micro_batch or pairs)) / jax.device_count()


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


def _layer_table(config: Config, shapes: Any, phases: Sequence[Phase]) -> str:
    """By how much a tower's learning rate is smaller further down; empty where it is not."""
    decay, rows = config.optim.layer_decay, []
    grouped = optim.split(shapes, learn_logit_scale=config.model.learn_logit_scale)
    for tower in ("vision", "text"):
        if decay != 1 and any(tower in phase.moving for phase in phases):
            factors = sorted(set(optim.layer_factors(decay, grouped[tower]).values()))
            rows.append([tower, *(f"{one:.3g}" for one in (factors[0], factors[1], decay))])
    heads = ["learning rate times", "embeddings", "first layer", "last layer"]
    return _table(heads, rows) if rows else ""


def _kept_per_pair(
    shapes: Any, model: Planned, optimizer: Optimizer, phase: Phase, length: int
) -> float:
    """Bytes of a pair that the forward pass keeps for the backward pass of the moving groups."""
    once, twice = (
        _residual_bytes(shapes, _batch_shapes(model, pairs, length), model, optimizer, phase)
        for pairs in (_PAIRS, 2 * _PAIRS)
    )
    return (twice - once) / _PAIRS  # the parameters it keeps do not grow with the pairs


def _batch_shapes(model: Planned, pairs: int, length: int) -> Batch:
    def like(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    size = model.image_size
    return Batch(
        pixel_values=like(pairs, size, size, 3, dtype=jnp.uint8),
        text=(TokenGroup(like(pairs, length), like(pairs, length)),),
        image_id=like(pairs, 2),
        caption_id=like(pairs, 2),
    )


def _residual_bytes(
    shapes: Any, batch: Batch, model: Planned, optimizer: Optimizer, phase: Phase
) -> int:
    moving, frozen = optimizer.split(shapes, phase.moving)

    def backward(moving, frozen, batch):
        def forward(moving):
            params = optim.join({**frozen, **moving})
            output = model.apply_pairs(params, batch, jax.random.PRNGKey(0), phase.moving, 1)
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
