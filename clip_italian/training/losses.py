"""Contrastive losses over the global batch. Arrays only.

Every pair on every device is a negative of every other. Rows are this device's pairs, columns are
the pairs of all devices: under pmap the columns are gathered along `axis_name`, under a mesh (or
on one device) rows and columns are the same global arrays. The mean of the per-device values and
gradients (`pmean` after `value_and_grad`) is then the value and gradient of the global batch.

Large batches are taken in blocks of rows, each computed again in the backward pass, so that the
matrix of all logits never exists whole: 32,768 pairs would need 4.3 GB for each copy of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

HIGHEST = lax.Precision.HIGHEST
# Logits of one block on one device: 64 MB in float32. Smaller batches are one block.
BLOCK_LOGITS = 2**24


class Pairs(NamedTuple):
    """Embedded pairs: rows of a loss, or its columns.

    Attributes:
      image_embeds: float32 [n, dim], L2-normalised.
      text_embeds: float32 [n, dim], L2-normalised.
      image_id: int32 [n, 2].
      caption_id: int32 [n, 2].
      index: int32 [n], place in the global batch: equal in row and column, they are one pair.
      valid: bool [n]; False is padding, which is nobody's negative. None: all valid.
    """

    image_embeds: Array
    text_embeds: Array
    image_id: Array
    caption_id: Array
    index: Array
    valid: Array | None = None


def gather(rows: Pairs, axis_name: str | None) -> Pairs:
    """The pairs of all devices, in order; `axis_name` None where arrays are global already."""
    if axis_name is None:
        return rows
    return jax.tree.map(lambda x: lax.all_gather(x, axis_name, tiled=True), rows)


def counted(rows: Pairs, columns: Pairs, *, mask_duplicates: bool) -> tuple[Array, Array]:
    """Which columns are each row's own pair, and which its negatives: bool [rows, columns] twice.

    Args:
      rows: pairs that a loss is computed for.
      columns: pairs of the whole batch.
      mask_duplicates: leave pairs that share the row's image or caption out of its negatives.
    """
    positive = rows.index[:, None] == columns.index[None, :]
    negative = ~positive
    if mask_duplicates:
        for own, other in (
            (rows.image_id, columns.image_id),
            (rows.caption_id, columns.caption_id),
        ):
            # Word by word: a [rows, columns, 2] array would be twice as large as the logits.
            same = own[:, None, 0] == other[None, :, 0]
            negative &= ~(same & (own[:, None, 1] == other[None, :, 1]))
    if columns.valid is not None:
        negative &= columns.valid[None, :]
    return positive, negative


def infonce_per_pair(
    rows: Pairs, columns: Pairs, logit_scale: Array, *, mask_duplicates: bool, shards: int = 1
) -> Array:
    """Symmetric InfoNCE of each row (CLIP, arXiv 2103.00020, figure 3).

    The mean of two cross-entropies: each image's softmax runs over all captions, each caption's
    over all images. Columns that are neither positive nor negative are left out of both.

    Args:
      rows: pairs of this device, or of all.
      columns: pairs of the whole batch.
      logit_scale: float32 [], the *log* of the similarity scale.
      mask_duplicates: as in `counted`.
      shards: device shards among the rows.

    Returns:
      float32 [rows].
    """
    scale = jnp.exp(logit_scale)

    def block(rows: Pairs) -> Array:
        positive, negative = counted(rows, columns, mask_duplicates=mask_duplicates)
        positive_logit = scale * jnp.sum(rows.image_embeds * rows.text_embeds, axis=-1)

        def cross_entropy(queries: Array, keys: Array) -> Array:
            logits = scale * jnp.matmul(queries, keys.T, precision=HIGHEST)
            kept = jnp.where(positive | negative, logits, -jnp.inf)
            return jax.nn.logsumexp(kept, axis=-1) - positive_logit

        image_to_text = cross_entropy(rows.image_embeds, columns.text_embeds)
        text_to_image = cross_entropy(rows.text_embeds, columns.image_embeds)
        return (image_to_text + text_to_image) / 2

    return _in_blocks(block, rows, len(columns.index), shards)


def sigmoid_per_pair(
    rows: Pairs,
    columns: Pairs,
    logit_scale: Array,
    logit_bias: Array,
    *,
    mask_duplicates: bool,
    shards: int = 1,
) -> Array:
    """Pairwise sigmoid loss of each row (SigLIP, arXiv 2303.15343, equation 1).

    The row's image against all captions, each an independent yes or no, summed over captions.

    Args:
      rows: pairs of this device, or of all.
      columns: pairs of the whole batch.
      logit_scale: float32 [], the *log* of the similarity scale.
      logit_bias: float32 [], added to all logits.
      mask_duplicates: as in `counted`.
      shards: device shards among the rows.

    Returns:
      float32 [rows].
    """

    def block(rows: Pairs) -> Array:
        positive, negative = counted(rows, columns, mask_duplicates=mask_duplicates)
        cosine = jnp.matmul(rows.image_embeds, columns.text_embeds.T, precision=HIGHEST)
        logits = jnp.exp(logit_scale) * cosine + logit_bias
        signed = jnp.where(positive, logits, -logits)
        return -jnp.sum(jnp.where(positive | negative, jax.nn.log_sigmoid(signed), 0.0), axis=-1)

    return _in_blocks(block, rows, len(columns.index), shards)


def _in_blocks(function, rows: Pairs, columns: int, shards: int) -> Array:
    """`function` of a few rows of every shard at a time: float32 [rows]."""
    local = len(rows.index) // shards
    fitting = (
        n for n in range(1, local) if local % n == 0 and local // n * columns <= BLOCK_LOGITS
    )
    blocks = next(fitting, local)
    if blocks == 1:
        return function(rows)
    return uncut(lax.map(jax.checkpoint(function), cut(rows, shards, blocks)), shards)


def cut(tree, shards: int, parts: int):
    """[shards · parts · n, ...] → [parts, shards · n, ...]: each part has rows of every shard.

    Rows stay on their device.
    """

    def one(x: Array) -> Array:
        split = x.reshape(shards, parts, -1, *x.shape[1:])
        return jnp.moveaxis(split, 1, 0).reshape(parts, -1, *x.shape[1:])

    return jax.tree.map(one, tree)


def uncut(tree, shards: int):
    """Inverse of `cut`."""

    def one(x: Array) -> Array:
        split = x.reshape(x.shape[0], shards, -1, *x.shape[2:])
        return jnp.moveaxis(split, 0, 1).reshape(-1, *x.shape[2:])

    return jax.tree.map(one, tree)


def mean_over(per_pair: Array, valid: Array | None = None) -> Array:
    """Mean over the valid rows: float32 []."""
    if valid is None:
        return jnp.mean(per_pair)
    return jnp.sum(jnp.where(valid, per_pair, 0.0)) / jnp.sum(valid, dtype=per_pair.dtype)
