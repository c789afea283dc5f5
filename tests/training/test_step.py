"""The step with real towers: equal on any number of devices, and frozen towers cost nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_italian.batch import Batch, TokenGroup
from clip_italian.config import (
    Config,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    resolve,
)
from clip_italian.model.towers import build
from clip_italian.training import loop, optim
from clip_italian.training.parallel import check_batch_size, make_parallel
from clip_italian.training.step import TrainState, init_state
from tests import toy
from tests.tiny import TINY_BERT, TINY_VIT

STEPS, PAIRS = 20, 16


def make_config(loss="infonce", **optim_fields):
    model = ModelConfig(
        vision_config=TINY_VIT, text_config=TINY_BERT, projection_dim=16, learn_logit_scale=True
    )
    return resolve(
        Config(
            model=model,
            loss=LossConfig(loss=loss),
            optim=OptimConfig(learning_rate=5e-5, **optim_fields),
            train=TrainConfig(steps=STEPS, batch_size=PAIRS),
        )
    )


def make_batch(seed, pairs=PAIRS, groups=((PAIRS, 9),)):
    rng = np.random.default_rng([5, seed])
    text = []
    for rows, length in groups:
        real = rng.integers(3, length + 1, (rows, 1))
        text.append(
            TokenGroup(
                rng.integers(5, 99, (rows, length)).astype(np.int32),
                (np.arange(length)[None] < real).astype(np.int32),
            )
        )
    return Batch(
        pixel_values=rng.integers(0, 256, (pairs, 32, 32, 3)).astype(np.uint8),
        text=tuple(text),
        image_id=rng.integers(0, 12, (pairs, 1)).repeat(2, 1).astype(np.int32),
        caption_id=rng.integers(0, 2**31 - 1, (pairs, 2)).astype(np.int32),
    )


@functools.cache
def model(loss):
    return build(make_config(loss).model, loss=loss)


def train(config, kind, devices):
    """Losses of all steps and the last parameters."""
    built = model(config.loss.loss)
    parallel = make_parallel(kind, jax.devices()[:devices])
    optimizer, phases = loop.plan(config)
    start = init_state(built.init(0), optimizer, phases[0], 0)
    state = parallel.replicate(jax.tree.map(jnp.copy, start))
    apply_fn = built.apply_pairs
    step = loop.compile_step(config, parallel, apply_fn, phases[0])
    losses = []
    for number in range(STEPS):
        state, metrics = step(state, parallel.place(make_batch(number)))
        losses.append(float(metrics["train/loss"]))
    return np.array(losses), jax.device_get(state.params)


@functools.cache
def on_one_device(loss):
    return train(make_config(loss), "mesh", 1)


@pytest.mark.parametrize("loss", ["infonce", pytest.param("sigmoid", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("kind", "devices"),
    [
        pytest.param("mesh", 2, marks=pytest.mark.slow),
        ("mesh", 8),
        pytest.param("pmap", 2, marks=pytest.mark.slow),
        ("pmap", 8),
    ],
)
def test_twenty_steps_on_many_devices_equal_one(kind, devices, loss):
    losses, params = train(make_config(loss), kind, devices)
    expected_losses, expected_params = on_one_device(loss)
    assert np.abs(losses - expected_losses).max() <= 1e-5
    differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, expected_params)
    paths = jax.tree_util.tree_leaves_with_path(differences)
    worst, path = max((value, jax.tree_util.keystr(path)) for path, value in paths)
    print(f"{kind} {devices} {loss}: {np.abs(losses - expected_losses).max():.1e}, {worst:.1e}")
    assert worst <= 1e-5, path
    assert losses[-1] != losses[0]


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_frozen_towers_cost_a_forward_pass_and_no_memory(loss):
    config = make_config(loss, vision_thaw_step=None, text_thaw_step=None)
    built = model(loss)
    optimizer, phases = loop.plan(config)
    params = built.init(0)
    state = init_state(params, optimizer, phases[0], 0)
    apply_fn = built.apply_pairs
    parallel = make_parallel("mesh", jax.devices()[:1])
    step = loop.compile_step(config, parallel, apply_fn, phases[0])
    batch = make_batch(0, pairs=64, groups=((64, 24),))

    def forward(params, batch):
        return apply_fn(params, batch, jax.random.PRNGKey(0), (), 1)

    spent, least = (
        f.lower(*args).compile().cost_analysis()["flops"]
        for f, args in ((step, (state, batch)), (jax.jit(forward), (params, batch)))
    )
    print(f"{loss}: frozen step {spent / least:.4f} × forward")
    assert spent / least <= 1.05
    assert set(state.opt_state) == {"projection", "logit"}
    moving = optimizer.split(params, ("projection", "logit"))[0]
    floats = [x for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.float32]
    assert sum(x.nbytes for x in floats) == 2 * sum(x.nbytes for x in jax.tree.leaves(moving))


def test_token_groups_pair_with_their_own_pixels_on_every_layout():
    """Pairs that can be told apart: group rows laid out shard by shard, as `Batch` says."""
    devices, per_group = 4, 8
    groups = tuple(
        TokenGroup(
            np.full((per_group, length), 5 + i, np.int32) + np.arange(per_group)[:, None],
            np.ones((per_group, length), np.int32),
        )
        for i, length in enumerate((3, 6))
    )
    built = model("infonce")
    params = built.init(0)
    pixels = make_batch(0).pixel_values
    batch = Batch(groups, np.arange(32).reshape(16, 2), np.arange(32).reshape(16, 2), pixels)
    encode = jax.jit(functools.partial(built.module.apply, method="encode_text"))
    alone = [np.asarray(encode({"params": params}, (group,))) for group in groups]
    # Shard d holds rows 2d, 2d + 1 of group 0, then of group 1.
    expected = np.concatenate([a[2 * d : 2 * d + 2] for d in range(devices) for a in alone])
    for kind in ("mesh", "pmap"):
        parallel = make_parallel(kind, jax.devices()[:devices])

        def texts(params, batch, shards=parallel.shards):
            key = jax.random.PRNGKey(0)
            return built.apply_pairs(params, batch, key, (), shards).text_embeds

        if kind == "mesh":
            found = jax.jit(texts)(params, parallel.place(batch))
        else:
            mapped = jax.pmap(texts, in_axes=(None, 0), devices=jax.devices()[:devices])
            found = mapped(params, parallel.place(batch)).reshape(16, -1)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_scale_is_clamped_after_the_update_and_can_come_back():
    config = toy.learned(toy.config(steps=5, learning_rate=1.0, schedule="constant"))
    parallel = make_parallel("mesh", jax.devices()[:1])
    optimizer, phases = loop.plan(config)
    params = {**toy.init_params(), "logit_scale": jnp.log(jnp.float32(99.0))}
    step = loop.compile_step(config, parallel, toy.apply_fn, phases[0])
    state = init_state(params, optimizer, phases[0], 0)
    up = -state.opt_state["logit"][0].mu["logit_scale"] - 100.0  # a moment that pushes it up
    pushed = state.opt_state["logit"][0]._replace(mu={"logit_scale": up})
    logit = (pushed, *state.opt_state["logit"][1:])
    state = state._replace(opt_state={**state.opt_state, "logit": logit})
    state, metrics = step(parallel.replicate(state), parallel.place(toy.batch(0)))
    np.testing.assert_allclose(metrics["train/logit_scale"], 100.0, rtol=1e-5)
    for number in range(1, 60):
        state, metrics = step(state, parallel.place(toy.batch(number)))
    assert float(metrics["train/logit_scale"]) < 99


def test_a_fixed_scale_does_not_move():
    config = toy.config(steps=3)
    parallel = make_parallel("mesh", jax.devices()[:1])
    optimizer, phases = loop.plan(config)
    state = init_state(toy.init_params(), optimizer, phases[0], 0)
    step = loop.compile_step(config, parallel, toy.apply_fn, phases[0])
    for number in range(3):
        state, metrics = step(state, parallel.place(toy.batch(number)))
    np.testing.assert_allclose(metrics["train/logit_scale"], 10.0, rtol=1e-6)
    assert "logit" not in phases[0].moving and "learning_rate/logit" not in metrics


def test_dropout_is_off_in_frozen_towers_and_differs_by_step():
    config = make_config(text_thaw_step=None)
    dropping = dataclasses.replace(config.model, dropout=0.5)
    built = build(dropping, loss="infonce")
    params, batch = built.init(0), make_batch(0)

    moving = loop.plan(config)[1][0].moving
    assert "vision" in moving and "text" not in moving
    embeds = jax.jit(lambda key: built.apply_pairs(params, batch, key, moving, 1))
    first, second = (embeds(jax.random.PRNGKey(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(first.text_embeds, second.text_embeds)
    assert np.abs(first.image_embeds - second.image_embeds).max() > 1e-3


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(
        Exception, match="batch_size = 30 does not split over 8 devices.*such as 24"
    ):
        check_batch_size("batch_size", 30, 8)
    check_batch_size("batch_size", 32, 8)


def test_the_state_has_no_device_axis_under_pmap():
    config = toy.config(steps=2)
    parallel = make_parallel("pmap")
    optimizer, phases = loop.plan(config)
    state = parallel.replicate(init_state(toy.init_params(), optimizer, phases[0], 0))
    shapes = jax.tree.map(jnp.shape, state)
    step = loop.compile_step(config, parallel, toy.apply_fn, phases[0])
    state, _ = step(state, parallel.place(toy.batch(0)))
    assert isinstance(state, TrainState) and jax.tree.map(jnp.shape, state) == shapes
    assert optim.FIXED not in state.opt_state
