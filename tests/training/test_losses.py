"""Losses against numbers worked out by hand, and equal on any number of devices."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from clip_italian.training import losses
from clip_italian.training.parallel import AXIS, make_parallel

IMAGES = np.array([[1, 0], [0, 1]], np.float32)
TEXTS = np.array([[1, 0], [0.6, 0.8]], np.float32)
IDS = np.array([[1, 0], [2, 0]], np.int32)
ZERO, BIAS = np.float32(0), np.float32(-2)


def make_pairs(images=IMAGES, texts=TEXTS, image_id=IDS, caption_id=IDS, valid=None):
    index = np.arange(len(images), dtype=np.int32)
    return losses.Pairs(*map(jnp.asarray, (images, texts, image_id, caption_id, index)), valid)


def infonce(pairs, scale=ZERO, mask=True):
    return losses.infonce_per_pair(pairs, pairs, scale, mask_duplicates=mask)


def sigmoid(pairs, scale=ZERO, bias=BIAS):
    return losses.sigmoid_per_pair(pairs, pairs, scale, bias, mask_duplicates=True)


def test_infonce_by_hand():
    # logits [[1, .6], [0, .8]]; image 0: ln(e + e^.6) - 1 = .51302, caption 0: ln(e + 1) - 1 = ...
    per_pair = infonce(make_pairs())
    np.testing.assert_allclose(per_pair, [0.41313799, 0.48461998], atol=1e-6)


def test_infonce_scale_is_a_log():
    # Scale 2: logits [[2, 1.2], [0, 1.6]].
    per_pair = infonce(make_pairs(), jnp.log(2.0))
    image_0, caption_0 = np.log(np.exp(2) + np.exp(1.2)) - 2, np.log(np.exp(2) + 1) - 2
    np.testing.assert_allclose(per_pair[0], (image_0 + caption_0) / 2, atol=1e-6)


def test_sigmoid_by_hand():
    # Bias -1: logits [[0, -.4], [-1, -.2]]; row 0: ln 2 + ln(1 + e^-.4), row 1: ...
    per_pair = sigmoid(make_pairs(), bias=np.float32(-1))
    np.testing.assert_allclose(per_pair, [1.20616236, 1.11140049], atol=1e-6)


@pytest.mark.parametrize("shared", ["image_id", "caption_id"])
def test_pairs_that_share_an_image_or_a_caption_are_not_negatives(shared):
    rng = np.random.default_rng(0)
    images, texts = unit(rng, 3), unit(rng, 3)
    ids = np.array([[1, 5], [2, 5], [1, 5]], np.int32)
    other = np.array([[1, 0], [2, 0], [3, 0]], np.int32)
    given = {"image_id": other, "caption_id": other, shared: ids}
    masked = make_pairs(images, texts, **given)
    _, negative = losses.counted(masked, masked, mask_duplicates=True)
    assert negative.tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    # Row 0 alone with row 1: the same value as a batch without its duplicate.
    alone = make_pairs(images[:2], texts[:2], other[:2], other[:2])
    for loss in (infonce, sigmoid):
        np.testing.assert_allclose(loss(masked)[0], loss(alone)[0], atol=1e-6)
    _, unmasked = losses.counted(masked, masked, mask_duplicates=False)
    assert unmasked.sum() == 6


def test_ids_that_agree_in_one_word_only_differ():
    ids = np.array([[1, 5], [2, 5]], np.int32)
    pairs = make_pairs(image_id=ids, caption_id=ids)
    _, negative = losses.counted(pairs, pairs, mask_duplicates=True)
    assert negative.tolist() == [[0, 1], [1, 0]]


def test_padding_is_out_of_both_softmaxes():
    rng = np.random.default_rng(1)
    images, texts = unit(rng, 4), unit(rng, 4)
    ids = np.arange(8, dtype=np.int32).reshape(4, 2)
    valid = jnp.asarray([True, True, True, False])
    padded = make_pairs(images, texts, ids, ids, valid)
    plain = make_pairs(images[:3], texts[:3], ids[:3], ids[:3])
    for loss in (infonce, sigmoid):
        value = losses.mean_over(loss(padded), valid)
        expected = losses.mean_over(loss(plain))
        np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("devices", "block"),
    [
        pytest.param(2, 10**6, marks=pytest.mark.slow, id="2-whole"),
        pytest.param(8, 10**6, id="8-whole"),
        pytest.param(2, 32, id="2-blocks"),
    ],
)
@pytest.mark.parametrize("kind", ["mesh", "pmap"])
@pytest.mark.parametrize("name", ["infonce", "sigmoid"])
def test_gradient_on_many_devices_equals_one(name, kind, devices, block, monkeypatch):
    monkeypatch.setattr(losses, "BLOCK_LOGITS", 10**6)
    batch = global_batch(16)
    one = jax.jit(jax.value_and_grad(functools.partial(batch_loss, name, axis_name=None)))
    value, grads = one(PARAMS, batch)
    monkeypatch.setattr(losses, "BLOCK_LOGITS", block)
    many = many_devices(name, kind, devices)
    many_value, many_grads = many(batch)
    np.testing.assert_allclose(many_value, value, rtol=1e-6)
    largest = max(float(abs(g).max()) for g in jax.tree.leaves(grads))
    for key in grads:
        difference = float(abs(np.asarray(many_grads[key]) - np.asarray(grads[key])).max())
        assert difference / largest <= 1e-6, key
    np.testing.assert_allclose(many_grads["logit_scale"], grads["logit_scale"], rtol=1e-5)


def unit(rng, rows, dim=6):
    x = rng.normal(size=(rows, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(3).normal(size=(6, 6)), jnp.float32),
    "logit_scale": jnp.asarray(2.0, jnp.float32),
    "logit_bias": jnp.asarray(-3.0, jnp.float32),
}


def global_batch(rows):
    rng = np.random.default_rng(4)
    # Some pairs share an image, some of them across devices.
    image_id = rng.integers(0, rows - 4, (rows, 1)).repeat(2, 1).astype(np.int32)
    caption_id = np.arange(2 * rows, dtype=np.int32).reshape(rows, 2)
    return unit(rng, rows), unit(rng, rows), image_id, caption_id


def batch_loss(name, params, batch, axis_name, shards=1):
    images, texts, image_id, caption_id = batch
    images = jnp.matmul(images, params["kernel"], precision=losses.HIGHEST)
    images = images / jnp.linalg.norm(images, axis=-1, keepdims=True)
    count = len(images)
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    index = jnp.arange(count, dtype=jnp.int32) + first
    rows = losses.Pairs(images, texts, image_id, caption_id, index)
    columns = losses.gather(rows, axis_name)
    options = {"mask_duplicates": True, "shards": shards}
    scale = params["logit_scale"]
    if name == "sigmoid":
        per_pair = losses.sigmoid_per_pair(rows, columns, scale, params["logit_bias"], **options)
    else:
        per_pair = losses.infonce_per_pair(rows, columns, scale, **options)
    return losses.mean_over(per_pair)


def many_devices(name, kind, devices):
    parallel = make_parallel(kind, jax.devices()[:devices])
    layout = {"axis_name": parallel.axis_name, "shards": parallel.shards}
    step = jax.value_and_grad(functools.partial(batch_loss, name, **layout))
    if kind == "mesh":
        compiled = jax.jit(step, in_shardings=(parallel.replicated, parallel.by_row))
        return lambda batch: compiled(PARAMS, parallel.place(batch))
    mapped = jax.pmap(
        lambda params, batch: jax.lax.pmean(step(params, batch), AXIS),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=jax.devices()[:devices],
    )
    return lambda batch: mapped(PARAMS, parallel.place(batch))


@pytest.mark.parametrize("kind", ["mesh", "pmap"])
@pytest.mark.parametrize("name", ["infonce", "sigmoid"])
def test_the_matrix_of_all_logits_never_exists_in_blocks(name, kind, monkeypatch):
    rows, devices = 64, 2
    monkeypatch.setattr(losses, "BLOCK_LOGITS", 8 * rows)  # 4 blocks of 8 rows on each device
    parallel = make_parallel(kind, jax.devices()[:devices])
    layout = {"axis_name": parallel.axis_name, "shards": parallel.shards}
    step = jax.value_and_grad(functools.partial(batch_loss, name, **layout))
    batch = parallel.place(global_batch(rows))
    if kind == "mesh":
        program = jax.jit(step, in_shardings=(parallel.replicated, parallel.by_row))
    else:
        program = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), devices=jax.devices()[:devices])
    text = program.lower(PARAMS, batch).compile().as_text()
    shapes = re.findall(r"(?:f32|pred|s32|u32)\[([\d,]+)\]", text)
    sizes = {math.prod(map(int, shape.split(","))) for shape in shapes}
    # Nor is it kept block by block for the backward pass.
    assert 8 * rows in sizes and max(sizes) <= 8 * rows
    assert "all-to-all" not in text


def test_cut_takes_rows_of_every_shard_and_uncut_puts_them_back():
    rows = jnp.arange(12)  # 2 shards of 6 rows, in 3 parts
    parts = losses.cut(rows, 2, 3)
    assert parts.tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert losses.uncut(parts, 2).tolist() == rows.tolist()


def test_the_mesh_splits_rows():
    placed = make_parallel("mesh").place(np.zeros((16, 3), np.float32))
    assert placed.sharding.spec == PartitionSpec(AXIS)
    assert {s.data.shape for s in placed.addressable_shards} == {(2, 3)}
