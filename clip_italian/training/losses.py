"""Contrastive losses over the global batch. Arrays only.

Every pair on every device is a negative of every other. Rows are this device's pairs, columns are
the pairs of all devices: under pmap the columns are gathered along `axis_name`, under a mesh (or
on one device) rows and columns are the same global arrays. The mean of the per-device values and
gradients (`pmean` after `value_and_grad`) is then the value and gradient of the global batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

HIGHEST = lax.Precision.HIGHEST


class Columns(NamedTuple):
    """The pairs of all devices, and how this device's rows relate to them.

    Attributes:
      image_embeds: float32 [all, dim].
      text_embeds: float32 [all, dim].
      positive: bool [rows, all], True where the column is the row's own pair.
      negative: bool [rows, all], True where the column counts as a negative of the row.
    """

    image_embeds: Array
    text_embeds: Array
    positive: Array
    negative: Array


def columns(
    image_embeds: Array,
    text_embeds: Array,
    image_id: Array,
    caption_id: Array,
    *,
    mask_duplicates: bool,
    valid: Array | None = None,
    axis_name: str | None = None,
) -> Columns:
    """Gathers the pairs of all devices and marks positives and negatives.

    Args:
      image_embeds: float32 [rows, dim], L2-normalised.
      text_embeds: float32 [rows, dim], L2-normalised.
      image_id: int32 [rows, 2].
      caption_id: int32 [rows, 2].
      mask_duplicates: leave pairs that share the row's image or caption out of its negatives.
      valid: bool [rows]; False rows are padding and are nobody's negative. None: all valid.
      axis_name: the pmap axis, None where arrays are global already.
    """
    rows = image_embeds.shape[0]

    def gather(x: Array) -> Array:
        return x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)

    first = 0 if axis_name is None else lax.axis_index(axis_name) * rows
    all_images, all_texts = gather(image_embeds), gather(text_embeds)
    own = jnp.arange(rows, dtype=jnp.int32)[:, None] + first
    positive = own == jnp.arange(all_images.shape[0], dtype=jnp.int32)[None, :]
    negative = ~positive
    if mask_duplicates:
        for ids in (image_id, caption_id):
            negative &= (ids[:, None, :] != gather(ids)[None, :, :]).any(axis=-1)
    if valid is not None:
        negative &= gather(valid)[None, :]
    return Columns(all_images, all_texts, positive, negative)


def infonce_per_pair(
    image_embeds: Array, text_embeds: Array, logit_scale: Array, others: Columns
) -> Array:
    """Symmetric InfoNCE of each row (CLIP, arXiv 2103.00020, figure 3).

    The mean of two cross-entropies: each image's softmax runs over all captions, each caption's
    over all images. Columns that are neither positive nor negative are left out of both.

    Args:
      image_embeds: float32 [rows, dim].
      text_embeds: float32 [rows, dim].
      logit_scale: float32 [], the *log* of the similarity scale.
      others: what `columns` returned for these rows.

    Returns:
      float32 [rows].
    """
    scale = jnp.exp(logit_scale)
    positive_logit = scale * jnp.sum(image_embeds * text_embeds, axis=-1)

    def cross_entropy(queries: Array, keys: Array) -> Array:
        logits = scale * jnp.matmul(queries, keys.T, precision=HIGHEST)
        kept = jnp.where(others.positive | others.negative, logits, -jnp.inf)
        return jax.nn.logsumexp(kept, axis=-1) - positive_logit

    image_to_text = cross_entropy(image_embeds, others.text_embeds)
    text_to_image = cross_entropy(text_embeds, others.image_embeds)
    return (image_to_text + text_to_image) / 2


def sigmoid_per_pair(
    image_embeds: Array, text_embeds: Array, logit_scale: Array, logit_bias: Array, others: Columns
) -> Array:
    """Pairwise sigmoid loss of each row (SigLIP, arXiv 2303.15343, equation 1).

    The row's image against all captions, each an independent yes or no, summed over captions.

    Args:
      image_embeds: float32 [rows, dim].
      text_embeds: float32 [rows, dim]; unused, since the columns hold all captions.
      logit_scale: float32 [], the *log* of the similarity scale.
      logit_bias: float32 [], added to all logits.
      others: what `columns` returned for these rows.

    Returns:
      float32 [rows].
    """
    del text_embeds
    cosine = jnp.matmul(image_embeds, others.text_embeds.T, precision=HIGHEST)
    logits = jnp.exp(logit_scale) * cosine + logit_bias
    signed = jnp.where(others.positive, logits, -logits)
    counted = others.positive | others.negative
    return -jnp.sum(jnp.where(counted, jax.nn.log_sigmoid(signed), 0.0), axis=-1)


def mean_over(per_pair: Array, valid: Array | None = None) -> Array:
    """Mean over the valid rows: float32 []."""
    if valid is None:
        return jnp.mean(per_pair)
    return jnp.sum(jnp.where(valid, per_pair, 0.0)) / jnp.sum(valid, dtype=per_pair.dtype)
