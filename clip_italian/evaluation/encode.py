"""Padded batches → embeddings on the host, one row per image or caption, in order."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from clip_italian.batch import Array, ImageBatch, TextBatch, TokenGroup


def encode_images(encode: Callable[[Array], Array], batches: Iterable[ImageBatch]) -> np.ndarray:
    """Embeds images.

    Args:
      encode: compiled; uint8 [rows, height, width, 3] → float [rows, dim], fetchable from here
        (replicated, when there are several processes).
      batches: padded to a fixed number of rows, so that `encode` compiles once.

    Returns:
      float32 [images, dim], padding rows dropped.

    Raises:
      ValueError: there is no batch, or `encode` returns another number of rows.
    """
    return _encode(encode, ((batch.pixel_values, batch.mask) for batch in batches))


def encode_texts(encode: Callable[[TokenGroup], Array], batches: Iterable[TextBatch]) -> np.ndarray:
    """Embeds captions: float32 [captions, dim]. `encode` gets one `TokenGroup`."""
    return _encode(encode, ((batch.tokens, batch.mask) for batch in batches))


def _encode(
    encode: Callable[[Any], Array], batches: Iterable[tuple[Any, np.ndarray]]
) -> np.ndarray:
    embeds, running = [], None
    for inputs, mask in batches:
        # JAX returns before the device is done: start this batch, then wait for the one before.
        started = encode(inputs), mask
        if running is not None:
            embeds.append(_fetch(*running))
        running = started
    if running is None:
        raise ValueError("nothing to encode: the evaluation set has no batch")
    return np.concatenate([*embeds, _fetch(*running)])


def _fetch(embeds: Array, mask: np.ndarray) -> np.ndarray:
    rows = np.asarray(embeds, dtype=np.float32)
    mask = np.asarray(mask, dtype=bool)
    if rows.ndim != 2 or len(rows) != len(mask):
        raise ValueError(f"encode returned {rows.shape} for a batch of {len(mask)} rows")
    return rows[mask]
