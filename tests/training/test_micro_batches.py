"""Micro-batches, groups of lengths, cached features and split parameters change no gradient."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_italian.batch import Batch, TokenGroup
from clip_italian.config import Config, LossConfig, ModelConfig, OptimConfig, TrainConfig, resolve
from clip_italian.model.flops import matmul_flops
from clip_italian.model.towers import build
from clip_italian.training import loop, losses
from clip_italian.training.optim import Optimizer, join
from clip_italian.training.parallel import make_parallel
from clip_italian.training.step import Layout, TrainState, embed, init_state, train_step
from tests.tiny import TINY_BERT, TINY_VIT

PAIRS = 32


class Spy(Optimizer):
    """Moves nothing and gives the gradient away as its state."""

    def update(self, grads, state, params, step):
        return jax.tree.map(jnp.zeros_like, grads), grads


def make_config(loss="infonce", dropout=0.0, **optim):
    model = ModelConfig(
        vision_config=TINY_VIT, text_config=TINY_BERT, projection_dim=16, learn_logit_scale=True,
        dropout=dropout,
    )  # fmt: skip
    return resolve(
        Config(
            model=model,
            loss=LossConfig(loss=loss),
            optim=OptimConfig(**optim),
            train=TrainConfig(batch_size=PAIRS),
        )
    )


@functools.cache
def make_model(loss, dropout=0.0):
    return build(make_config(loss, dropout).model, loss=loss)


def captions():
    """32 captions of 3 to 12 tokens, in the order of the batch."""
    rng = np.random.default_rng(1)
    return [rng.integers(5, 99, rng.integers(3, 13)).astype(np.int32) for _ in range(PAIRS)]


def padded(rows, length):
    ids = np.zeros((len(rows), length), np.int32)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return TokenGroup(ids, mask)


def make_batch(shares=1, groups=((PAIRS, 20),)):
    """The same pairs in any layout: by length into groups of (rows, length), share by share."""
    rng, words = np.random.default_rng(0), captions()
    pixels = rng.integers(0, 256, (PAIRS, 32, 32, 3)).astype(np.uint8)
    image_id = rng.integers(0, 28, (PAIRS, 1)).repeat(2, 1).astype(np.int32)
    by_length = np.argsort([len(w) for w in words], kind="stable")
    order, text, first = [[] for _ in range(shares)], [], 0
    for rows, length in groups:
        members = by_length[first : first + rows].reshape(shares, -1)
        first += rows
        text.append(padded([words[i] for i in members.flat], length))
        for share in range(shares):
            order[share] += list(members[share])
    rows = np.concatenate(order).astype(np.int64)
    caption_id = np.arange(2 * PAIRS, dtype=np.int32).reshape(PAIRS, 2)
    return Batch(tuple(text), image_id[rows], caption_id[rows], pixels[rows])


def gradient(config, batch, *, kind="mesh", devices=1, micro_batches=1, shard_params=False):
    """Loss and gradient {group: {path: array}} of one step."""
    model = make_model(config.loss.loss, config.model.dropout)
    parallel = make_parallel(kind, jax.devices()[:devices], shard_params=shard_params)
    optimizer, phases = loop.plan(config)
    step = functools.partial(
        train_step,
        config=config,
        apply_fn=model.apply_pairs,
        optimizer=Spy(optimizer.config, optimizer.learn_logit_scale),
        phase=phases[0],
        layout=Layout(
            parallel.shards, parallel.axis_name, micro_batches, parallel.gather, parallel.scatter
        ),
    )
    params = model.init(0)
    none = jax.tree.map(jnp.zeros_like, optimizer.split(params, phases[0].moving)[0])
    state = TrainState(jnp.zeros((), jnp.int32), params, none, jax.random.PRNGKey(3))
    state, metrics = parallel.compile(step)(parallel.place_state(state), parallel.place(batch))
    return float(metrics["train/loss"]), jax.device_get(state.opt_state)


@functools.cache
def reference(loss, vision_thaw_step=0):
    return gradient(make_config(loss, vision_thaw_step=vision_thaw_step), make_batch())


def assert_equal_gradients(found, expected):
    """Largest difference over the largest entry; the scale by itself."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    ours, theirs = found[1], expected[1]
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(theirs))
    differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), ours, theirs)
    worst = max(jax.tree.leaves(differences)) / largest
    print(f"largest difference over largest entry {worst:.1e}")
    assert worst <= 1e-6
    for name in theirs["logit"]:
        np.testing.assert_allclose(ours["logit"][name], theirs["logit"][name], rtol=2e-5)


LAYOUTS = [
    pytest.param("infonce", "mesh", 1, marks=pytest.mark.slow),
    ("infonce", "mesh", 4),
    pytest.param("infonce", "pmap", 4, marks=pytest.mark.slow),
    pytest.param("sigmoid", "mesh", 1, marks=pytest.mark.slow),
    pytest.param("sigmoid", "mesh", 4, marks=pytest.mark.slow),
    ("sigmoid", "pmap", 4),
]


@pytest.mark.parametrize(("loss", "kind", "devices"), LAYOUTS)
def test_micro_batches_and_groups_give_the_gradient_of_one_padded_batch(
    loss, kind, devices, monkeypatch
):
    monkeypatch.setattr(losses, "BLOCK_LOGITS", 4 * PAIRS)  # the logits in blocks as well
    parts = 2 if devices == 4 else 4
    batch = make_batch(devices * parts, ((16, 8), (16, 12)))
    found = gradient(make_config(loss), batch, kind=kind, devices=devices, micro_batches=parts)
    assert_equal_gradients(found, reference(loss))


@pytest.mark.parametrize("loss", ["infonce", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_groups_alone_give_the_gradient_of_padding(loss):
    batch = make_batch(1, ((16, 8), (16, 12)))
    assert_equal_gradients(gradient(make_config(loss), batch), reference(loss))


def test_features_in_place_of_pixels_and_tokens_give_the_same_gradient():
    config, model = make_config(vision_thaw_step=None, text_thaw_step=None), make_model("infonce")
    batch, params = make_batch(), make_model("infonce").init(0)
    image = model.module.apply({"params": params}, batch.pixel_values, method="pool_image")
    text = model.module.apply({"params": params}, batch.text, method="pool_text")
    cached = batch._replace(
        text=(), pixel_values=None, image_features=np.asarray(image), text_features=np.asarray(text)
    )
    expected = gradient(config, batch)
    assert set(expected[1]) == {"projection", "logit"}
    assert_equal_gradients(gradient(config, cached), expected)
    assert_equal_gradients(gradient(config, cached, micro_batches=4), expected)
    other = cached._replace(image_features=cached.image_features[::-1])
    assert gradient(config, other)[0] != expected[0]


@pytest.mark.parametrize("loss", ["infonce", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_dropout_is_that_of_an_unrolled_loop_with_the_same_keys(loss):
    config, micro, batch = make_config(loss, dropout=0.3), 4, make_batch(4)
    model = make_model(loss, 0.3)
    moving = loop.plan(config)[1][0].moving
    key = jax.random.fold_in(jax.random.PRNGKey(3), 0)
    rows = losses.Pairs(
        jnp.zeros((0,)), jnp.zeros((0,)), batch.image_id, batch.caption_id,
        np.arange(PAIRS, dtype=np.int32),
    )  # fmt: skip
    options = {"mask_duplicates": True}

    def unrolled(params):
        images, texts = [], []
        for part in range(micro):
            own = jax.tree.map(lambda x, p=part: x[p * 8 : p * 8 + 8], batch)
            part_key = jax.random.fold_in(key, part)
            output = model.apply_pairs(params, own, part_key, moving, 1)
            images.append(output.image_embeds)
            texts.append(output.text_embeds)
        pairs = rows._replace(
            image_embeds=jnp.concatenate(images), text_embeds=jnp.concatenate(texts)
        )
        scale = params["logit_scale"]
        if loss == "sigmoid":
            per_pair = losses.sigmoid_per_pair(pairs, pairs, scale, params["logit_bias"], **options)
        else:
            per_pair = losses.infonce_per_pair(pairs, pairs, scale, **options)
        return losses.mean_over(per_pair)

    value, grads = jax.jit(jax.value_and_grad(unrolled))(model.init(0))
    expected = Optimizer(config.optim, True).split(jax.device_get(grads), moving)[0]
    assert_equal_gradients(gradient(config, batch, micro_batches=micro), (float(value), expected))
    plain = gradient(make_config(loss), batch)[0]
    assert abs(plain - float(value)) > 1e-4  # dropout was on


def test_micro_batches_encode_a_frozen_tower_once_and_a_moving_one_twice():
    model, config = make_model("infonce"), make_config(vision_thaw_step=None)
    batch, params, moving = make_batch(4), model.init(0), ("text", "projection")
    own, frozen = loop.plan(config)[0].split(params, moving)

    def flops(micro_batches):
        layout = Layout(micro_batches=micro_batches)

        def objective(own):
            output = embed(
                join({**frozen, **own}), batch, jax.random.PRNGKey(0),
                apply_fn=model.apply_pairs, moving=moving, layout=layout,
            )  # fmt: skip
            return jnp.sum(output.image_embeds * output.text_embeds)

        return matmul_flops(jax.grad(objective), own)

    encode = functools.partial(model.module.apply, {"params": params}, method="encode_text")
    again = flops(4) - flops(1)
    assert 0.98 <= again / matmul_flops(encode, batch.text) <= 1.02


@pytest.mark.parametrize("ema", [pytest.param(0.0, marks=pytest.mark.slow), 0.9])
def test_split_parameters_train_like_whole_ones(ema):
    config = make_config(learning_rate=5e-5, agc_clip=0.01, ema_decay=ema)
    model, (optimizer, phases) = make_model("infonce"), loop.plan(config)
    found = []
    for shard_params in (False, True):
        parallel = make_parallel("mesh", jax.devices()[:4], shard_params=shard_params)
        state = parallel.place_state(init_state(model.init(0), optimizer, phases[0], 0))
        step = loop.compile_step(config, parallel, model.apply_pairs, phases[0])
        for _ in range(3):
            state, metrics = step(state, parallel.place(make_batch(4)))
        found.append((float(metrics["train/loss"]), state))
    (whole_loss, whole), (split_loss, split) = found
    assert abs(whole_loss - split_loss) <= 1e-5
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-5

    def on_one_device(state):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))

    share = on_one_device(split) / on_one_device(whole)
    print(f"bytes of state on a device: {share:.3f} of the whole")
    assert share < 0.3  # a quarter, and the small leaves


def test_split_parameters_gather_parameters_and_no_activations():
    config, devices = make_config(), 4
    model, (optimizer, phases) = make_model("infonce"), loop.plan(config)
    parallel = make_parallel("mesh", jax.devices()[:devices], shard_params=True)
    state = parallel.place_state(init_state(model.init(0), optimizer, phases[0], 0))
    step = loop.compile_step(config, parallel, model.apply_pairs, phases[0])
    text = step.lower(state, parallel.place(make_batch(4))).compile().as_text()
    gathered = re.findall(r"= \(?(\w+)\[([\d,]*)\][^=]* all-gather(?:-start)?\(", text)
    shapes = {tuple(map(int, dims.split(","))) for _, dims in gathered if dims}
    allowed = {tuple(x.shape) for x in jax.tree.leaves(state.params)}
    allowed |= {(PAIRS, 16), (PAIRS, 2), (PAIRS,)}  # embeddings and ids of the whole batch
    assert shapes and shapes <= allowed, shapes - allowed
    assert "all-to-all" not in text


def test_the_average_follows_the_parameters_and_is_what_is_evaluated():
    config = make_config(learning_rate=1e-2, schedule="constant", ema_decay=0.5)
    model, (optimizer, phases) = make_model("infonce"), loop.plan(config)
    parallel = make_parallel("mesh", jax.devices()[:1])
    start = model.init(0)
    state = parallel.place_state(init_state(start, optimizer, phases[0], 0))
    step = loop.compile_step(config, parallel, model.apply_pairs, phases[0])

    def kernel(tree):
        return np.asarray(tree["text_projection"]["kernel"])

    expected = kernel(start)
    for number in range(3):
        state, _ = step(state, parallel.place(make_batch()))
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * kernel(state.params)
    np.testing.assert_allclose(kernel(state.evaluated), expected, rtol=1e-5, atol=1e-7)
    assert np.abs(kernel(state.params) - expected).max() > 1e-3
    plain = dataclasses.replace(config, optim=dataclasses.replace(config.optim, ema_decay=0.0))
    state = init_state(start, loop.plan(plain)[0], phases[0], 0)
    assert state.ema is None and state.evaluated is state.params
