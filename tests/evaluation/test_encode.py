"""Encoding keeps every row and its order, drops padding, and does not wait for the device."""

import jax
import numpy as np
import pytest

from clip_italian.batch import ImageBatch, TextBatch, TokenGroup
from clip_italian.evaluation.encode import encode_images, encode_texts


def image_batches(images, rows):
    """Images numbered from 0 by their pixel value, padded with 255."""
    for start in range(0, images, rows):
        numbers = np.full(rows, 255, np.uint8)
        numbers[: min(rows, images - start)] = np.arange(start, min(images, start + rows))
        pixels = np.broadcast_to(numbers[:, None, None, None], (rows, 2, 2, 3))
        yield ImageBatch(pixels, numbers != 255)


def test_images_in_order_without_padding():
    encode = jax.jit(lambda pixels: pixels.mean(axis=(1, 2)).astype("bfloat16"))
    embeds = encode_images(encode, image_batches(7, 4))
    assert embeds.dtype == np.float32
    assert embeds.tolist() == [[i, i, i] for i in range(7)]


def test_padding_may_stand_anywhere():
    batch = ImageBatch(
        np.arange(4, dtype=np.uint8)[:, None, None, None], np.array([True, False, True, False])
    )
    embeds = encode_images(lambda pixels: pixels[:, 0, 0, :].astype(np.float32), [batch])
    assert embeds.tolist() == [[0.0], [2.0]]


def test_texts_get_their_tokens():
    def encode(tokens):
        return (tokens.input_ids * tokens.attention_mask).sum(axis=1, keepdims=True)

    ids = np.array([[1, 2, 9], [3, 4, 5], [0, 0, 0]], np.int32)
    attention = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0]], np.int32)
    batch = TextBatch(TokenGroup(ids, attention), np.array([True, True, False]))
    embeds = encode_texts(encode, [batch, batch])
    assert embeds.dtype == np.float32
    assert embeds.tolist() == [[3], [12], [3], [12]]


def test_the_next_batch_starts_before_the_last_result_is_fetched():
    events = []

    class Running:
        """Stands for a device array: fetching it waits."""

        def __init__(self, number):
            self.number = number
            events.append(f"start {number}")

        def __array__(self, dtype=None, copy=None):
            events.append(f"fetch {self.number}")
            return np.full((2, 1), self.number, dtype)

    embeds = encode_images(lambda pixels: Running(int(pixels[0, 0, 0, 0])), image_batches(6, 2))
    assert events == ["start 0", "start 2", "fetch 0", "start 4", "fetch 2", "fetch 4"]
    assert embeds.tolist() == [[0], [0], [2], [2], [4], [4]]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no batch"):
        encode_images(lambda pixels: pixels, [])
    with pytest.raises(ValueError, match=r"encode returned \(2, 3\) for a batch of 4 rows"):
        encode_images(lambda pixels: pixels[:2, 0, 0], image_batches(4, 4))
