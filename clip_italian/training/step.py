"""The training state and the pure train and loss steps, wrapped for devices by `parallel`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from clip_italian.batch import Batch
from clip_italian.config import Config
from clip_italian.training import losses
from clip_italian.training.optim import Optimizer, Phase, join, learning_rate

# (params, batch, dropout key, moving groups, shards) → image_embeds, text_embeds, logit_scale,
# logit_bias. Dropout is on only in towers that move, and only if the model has any.
ApplyFn = Callable[[Any, Batch, jax.Array, tuple[str, ...], int], Any]


class TrainState(NamedTuple):
    """All that a run needs to continue exactly. It never has a device axis.

    Attributes:
      step: int32 [], steps done; also the position in the data.
      params: parameter tree, float32.
      opt_state: `{group: optax state}` of the groups that move at `step`.
      rng: uint32 [2], the run's dropout key; a step's key folds in `step`.
    """

    step: jax.Array
    params: Any
    opt_state: dict[str, Any]
    rng: jax.Array


def init_state(params: Any, optimizer: Optimizer, phase: Phase, seed: int) -> TrainState:
    """The state before step 0."""
    opt_state = optimizer.enter(params, {}, phase)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, jax.random.PRNGKey(seed))


def enter_phase(state: TrainState, optimizer: Optimizer, phase: Phase) -> TrainState:
    """The same state with the optimizer state of `phase`; done before the phase's first step."""
    return state._replace(opt_state=optimizer.enter(state.params, state.opt_state, phase))


def loss_per_pair(
    config: Config, output: Any, batch: Batch, *, valid: Any = None, axis_name: str | None = None
) -> jax.Array:
    """The configured contrastive loss of each row: float32 [rows]."""
    others = losses.columns(
        output.image_embeds,
        output.text_embeds,
        batch.image_id,
        batch.caption_id,
        mask_duplicates=config.loss.mask_duplicates,
        valid=valid,
        axis_name=axis_name,
    )
    embeds = (output.image_embeds, output.text_embeds, output.logit_scale)
    if config.loss.loss == "sigmoid":
        return losses.sigmoid_per_pair(*embeds, output.logit_bias, others)
    return losses.infonce_per_pair(*embeds, others)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: Config,
    apply_fn: ApplyFn,
    optimizer: Optimizer,
    phase: Phase,
    shards: int,
    axis_name: str | None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on the moving groups of `phase`. Pure.

    Args:
      state: at a step of `phase`.
      batch: the global batch (mesh), or this device's rows of it (pmap).
      config: a resolved config.
      apply_fn: the model.
      optimizer: groups, transformations and rates.
      phase: which groups move.
      shards: device shards among the rows of `batch`: all devices (mesh) or 1 (pmap).
      axis_name: the pmap axis, or None.

    Returns:
      The next state, and float32 scalars: `train/loss` over the global batch,
      `train/grad_norm` over the moving groups, `train/logit_scale` (plain factor) and each
      moving group's `learning_rate/<group>`.
    """
    key = jax.random.fold_in(state.rng, state.step)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    moving, frozen = optimizer.split(state.params, phase.moving)

    def objective(moving):
        output = apply_fn(join({**frozen, **moving}), batch, key, phase.moving, shards)
        per_pair = loss_per_pair(config, output, batch, axis_name=axis_name)
        return losses.mean_over(per_pair)

    loss, grads = jax.value_and_grad(objective)(moving)
    if axis_name is not None:
        loss, grads = jax.lax.pmean((loss, grads), axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, moving, state.step)
    moving = _clamp_scale(optax.apply_updates(moving, updates), config.model.logit_scale_max)
    params = join({**frozen, **moving})
    metrics = {
        "train/loss": loss,
        "train/grad_norm": optax.tree.norm(grads),
        "train/logit_scale": jnp.exp(params["logit_scale"]),
    }
    for group in moving:
        metrics[f"learning_rate/{group}"] = learning_rate(optimizer.config, group)(state.step)
    return TrainState(state.step + 1, params, opt_state, state.rng), metrics


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
    output = apply_fn(params, batch, jax.random.PRNGKey(0), (), shards)
    per_pair = loss_per_pair(config, output, batch, valid=valid)
    count = jnp.sum(valid, dtype=jnp.float32)
    return jnp.stack([losses.mean_over(per_pair, valid) * count, count])
