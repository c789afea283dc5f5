"""The Batch contract: what the data room hands to the loop and the loop hands to the model.

Arrays are numpy on the host and jax on the device; a pair is one image with one caption. All
types are named tuples, which JAX treats as pytrees, and `None` leaves are simply absent.

Rows of a training batch are **shard-major**: with S shares, share s owns rows
`[s * pairs / S, (s + 1) * pairs / S)` of `pixel_values` and the same share of every token group,
and its pixel rows follow its own groups in order. Any other layout pairs wrong rows silently.
Shares are devices, or, where a step encodes M micro-batches, M of each device, side by side.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

Array = Any  # numpy.ndarray on the host, jax.Array on the device

# Name under which a model marks its towers' pooled outputs (`jax.ad_checkpoint.checkpoint_name`).
POOLED_OUTPUT = "pooled_output"


class TokenGroup(NamedTuple):
    """Captions of one static length.

    Attributes:
      input_ids: int32 [pairs_g, length_g], padded with the tokenizer's pad id.
      attention_mask: int32 [pairs_g, length_g], 1 on real tokens.
    """

    input_ids: Array
    attention_mask: Array


class Batch(NamedTuple):
    """Training pairs of one step.

    Attributes:
      text: token groups; one group of one length is the simple case. Σ pairs_g = pairs.
      image_id: int32 [pairs, 2], a 64-bit hash of the image's identity in two words
        (high, low), because JAX silently truncates int64.
      caption_id: int32 [pairs, 2], likewise, of the caption's text.
      pixel_values: uint8 [pairs, height, width, 3] (NHWC, 0 to 255), normalised on the device.
      image_features: float [pairs, width], cached pooled outputs in place of `pixel_values`.
      text_features: float [pairs, width], cached pooled outputs in place of `text`, then `()`.
    """

    text: tuple[TokenGroup, ...]
    image_id: Array
    caption_id: Array
    pixel_values: Array | None = None
    image_features: Array | None = None
    text_features: Array | None = None


def batch_number(step: int, skipped: Iterable[int]) -> int:
    """Which batch of the order a step shows, when the batches `skipped` are left out of it.

    Batch b holds the positions b · batch_size up to the next one's. `skipped` says which batches
    of the order, in any order.
    """
    for number in sorted(skipped):
        step += number <= step
    return step


class ImageBatch(NamedTuple):
    """Images to be encoded for evaluation, padded to a fixed number of rows.

    Attributes:
      pixel_values: uint8 [rows, height, width, 3].
      mask: bool [rows], False on padding rows.
    """

    pixel_values: Array
    mask: Array


class TextBatch(NamedTuple):
    """Captions to be encoded for evaluation, padded to a fixed number of rows.

    Attributes:
      tokens: one group, int32 [rows, length].
      mask: bool [rows], False on padding rows.
    """

    tokens: TokenGroup
    mask: Array
