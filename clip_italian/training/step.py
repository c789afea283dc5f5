"""The training state and the pure train and loss steps, wrapped for devices by `parallel`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from clip_italian.batch import POOLED_OUTPUT, Batch
from clip_italian.config import Config
from clip_italian.training import losses
from clip_italian.training.optim import Optimizer, Phase, join, learning_rate

# (params, batch, dropout key, moving groups, shards) → image_embeds, text_embeds, logit_scale,
# logit_bias. Dropout is on only in towers that move, and only if the model has any.
ApplyFn = Callable[[Any, Batch, jax.Array, tuple[str, ...], int], Any]
# A gradient below it leaves moments finite: they hold squares of differences of two gradients.
LARGEST_NORM = 4e18


class TrainState(NamedTuple):
    """All that a run needs to continue exactly. It never has a device axis.

    Attributes:
      step: int32 [], steps done; also the position in the data.
      params: parameter tree, float32.
      opt_state: `{group: optax state}` of the groups that move at `step`.
      rng: uint32 [2], the run's dropout key; a step's key folds in `step`.
      ema: moving average of `params`, the same tree; None where none is kept.
    """

    step: jax.Array
    params: Any
    opt_state: dict[str, Any]
    rng: jax.Array
    ema: Any = None

    @property
    def evaluated(self) -> Any:
        """The parameters that are evaluated and exported: the average where one is kept."""
        return self.params if self.ema is None else self.ema


class Layout(NamedTuple):
    """How the rows of a step lie, and where parameters do.

    Attributes:
      shards: device shards among the rows that a step sees: all devices (mesh) or 1 (pmap).
      axis_name: the pmap axis, or None.
      micro_batches: parts of every shard that are encoded one after another.
      gather: tree of parameters or columns → the same, whole on every device.
      scatter: tree of gradients or state → the same, each leaf where its parameter lies.
    """

    shards: int = 1
    axis_name: str | None = None
    micro_batches: int = 1
    gather: Callable[[Any], Any] = lambda tree: tree
    scatter: Callable[[Any], Any] = lambda tree: tree


def init_state(params: Any, optimizer: Optimizer, phase: Phase, seed: int) -> TrainState:
    """The state before step 0."""
    opt_state = optimizer.enter(params, {}, phase)
    # A copy: a step gives the memory of both away.
    average = jax.tree.map(jnp.copy, params) if optimizer.config.ema_decay else None
    step, key = jnp.zeros((), jnp.int32), jax.random.PRNGKey(seed)
    return TrainState(step, params, opt_state, key, average)


def enter_phase(state: TrainState, optimizer: Optimizer, phase: Phase) -> TrainState:
    """The same state with the optimizer state of `phase`; done before the phase's first step."""
    return state._replace(opt_state=optimizer.enter(state.params, state.opt_state, phase))


class Embedded(NamedTuple):
    """Image and text embeddings of a batch, float32 [pairs, dim], with scale and bias [] beside."""

    image_embeds: jax.Array
    text_embeds: jax.Array
    logit_scale: jax.Array
    logit_bias: jax.Array | None


def embed(
    params: Any,
    batch: Batch,
    key: jax.Array,
    *,
    apply_fn: ApplyFn,
    moving: tuple[str, ...],
    layout: Layout,
) -> Embedded:
    """Encodes a batch, micro-batch by micro-batch.

    The backward pass encodes each micro-batch again with the gradient of its embeddings and the
    same dropout key (GradCache, arXiv 2101.06983), so that activations of one micro-batch exist
    at a time while the gradient is that of the whole batch. Pooled outputs are kept, so that a
    frozen tower is not encoded twice.
    """
    if layout.micro_batches == 1:
        output = apply_fn(params, batch, key, moving, layout.shards)
        return Embedded(*(getattr(output, name) for name in Embedded._fields))

    def encode(part: tuple[Batch, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows, number = part
        own = jax.random.fold_in(key, number)
        output = apply_fn(params, rows, own, moving, layout.shards)
        return output.image_embeds, output.text_embeds

    policy = jax.checkpoint_policies.save_only_these_names(POOLED_OUTPUT)
    parts = losses.cut(batch, layout.shards, layout.micro_batches)
    numbers = jnp.arange(layout.micro_batches, dtype=jnp.int32)
    embeds = jax.lax.map(jax.checkpoint(encode, policy=policy), (parts, numbers))
    images, texts = losses.uncut(embeds, layout.shards)
    # From the parameters, not from each micro-batch: their gradients count once.
    return Embedded(images, texts, params["logit_scale"], params.get("logit_bias"))


def loss_per_pair(
    config: Config, output: Any, batch: Batch, layout: Layout | None = None, valid: Any = None
) -> jax.Array:
    """The configured contrastive loss of each row: float32 [rows].

    Args:
      config: a resolved config.
      output: embeddings, scale and bias, as in `Embedded`.
      batch: their ids.
      layout: how rows lie; None is one device.
      valid: bool [rows], False on padding; None where there is none.
    """
    layout = layout or Layout()
    count = output.image_embeds.shape[0]
    first = 0 if layout.axis_name is None else jax.lax.axis_index(layout.axis_name) * count
    rows = losses.Pairs(
        output.image_embeds,
        output.text_embeds,
        batch.image_id,
        batch.caption_id,
        jnp.arange(count, dtype=jnp.int32) + first,
        valid,
    )
    columns = layout.gather(losses.gather(rows, layout.axis_name))
    options = {"mask_duplicates": config.loss.mask_duplicates, "shards": layout.shards}
    if config.loss.loss == "sigmoid":
        both = (output.logit_scale, output.logit_bias)
        return losses.sigmoid_per_pair(rows, columns, *both, **options)
    return losses.infonce_per_pair(rows, columns, output.logit_scale, **options)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: Config,
    apply_fn: ApplyFn,
    optimizer: Optimizer,
    phase: Phase,
    layout: Layout,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on the moving groups of `phase`. Pure.

    Where loss or gradient is not finite, parameters, moments and average stay what they were.

    Args:
      state: at a step of `phase`.
      batch: the global batch (mesh), or this device's rows of it (pmap).
      config: a resolved config.
      apply_fn: the model.
      optimizer: groups, transformations and rates.
      phase: which groups move.
      layout: how rows and parameters lie.

    Returns:
      The next state, and float32 scalars: `train/loss` over the global batch,
      `train/grad_norm` over the moving groups, `train/skipped` (1 for a step that changed
      nothing), `train/logit_scale` (plain factor) and the moving groups' `learning_rate/<group>`.
    """
    key = jax.random.fold_in(state.rng, state.step)
    if layout.axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(layout.axis_name))
    stored, kept = optimizer.split(state.params, phase.moving)
    whole, frozen = layout.gather((stored, kept))

    def objective(moving):
        params = join({**frozen, **moving})
        output = embed(params, batch, key, apply_fn=apply_fn, moving=phase.moving, layout=layout)
        return losses.mean_over(loss_per_pair(config, output, batch, layout))

    loss, grads = jax.value_and_grad(objective)(whole)
    if layout.axis_name is not None:
        loss, grads = jax.lax.pmean((loss, grads), layout.axis_name)
    grads = layout.scatter(grads)
    sound = jnp.isfinite(loss) & (optax.tree.norm(grads) < LARGEST_NORM)  # False for NaN
    updates, opt_state = optimizer.update(grads, state.opt_state, stored, state.step)
    moved = _clamp_scale(optax.apply_updates(stored, updates), config.model.logit_scale_max)
    ema = _averaged(state.ema, join({**kept, **moved}), state.step, config.optim.ema_decay)
    same = (stored, state.opt_state, state.ema)
    moved, opt_state, ema = _where(sound, (moved, opt_state, ema), same)
    params = join({**kept, **moved})
    metrics = {
        "train/loss": loss,
        "train/grad_norm": optax.tree.norm(grads),  # once: the compiler sees that it is the same
        "train/skipped": 1 - sound.astype(jnp.float32),
        "train/logit_scale": jnp.exp(params["logit_scale"]),
    }
    for group in moved:
        metrics[f"learning_rate/{group}"] = learning_rate(optimizer.config, group)(state.step)
    params, opt_state, ema = layout.scatter((params, opt_state, ema))
    return TrainState(state.step + 1, params, opt_state, state.rng, ema), metrics


def _where(condition: jax.Array, then: Any, otherwise: Any) -> Any:
    """One of two equal trees, bit by bit: bool [] chooses."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), then, otherwise)


def _averaged(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """The moving average after a step. Early on its memory is short: (1 + step) / (10 + step).

    That warm-up is TensorFlow's (`ExponentialMovingAverage`, num_updates): without it the random
    start would be part of the average for thousands of steps.
    """
    if ema is None:
        return None
    count = step.astype(jnp.float32)
    rate = 1 - jnp.minimum(jnp.float32(decay), (1 + count) / (10 + count))
    return jax.tree.map(lambda average, new: average + rate * (new - average), ema, params)


def _clamp_scale(moving: Any, maximum: float) -> Any:
    """Clamps a learned log scale, after its update.

    A clamp in the forward pass would leave it stuck above, where its gradient is zero.
    """
    if "logit_scale" not in moving.get("logit", {}):
        return moving
    clamped = jnp.minimum(moving["logit"]["logit_scale"], jnp.log(maximum))
    return {**moving, "logit": {**moving["logit"], "logit_scale": clamped}}


def loss_step(
    params: Any, batch: Batch, valid: jax.Array, *, config: Config, apply_fn: ApplyFn, shards: int
) -> jax.Array:
    """Validation loss of one padded batch: float32 [2], sum over and number of valid rows.

    Padding is masked out of both softmaxes. The loss rests on the number of candidates, so
    values compare only between equal `eval_batch_size`.
    """
    layout = Layout(shards=shards)
    key = jax.random.PRNGKey(0)
    output = embed(params, batch, key, apply_fn=apply_fn, moving=(), layout=layout)
    per_pair = loss_per_pair(config, output, batch, layout, valid)
    count = jnp.sum(valid, dtype=jnp.float32)
    return jnp.stack([losses.mean_over(per_pair, valid) * count, count])
