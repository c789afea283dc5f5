"""Groups, phases, schedules and optimizers, with literal values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from clip_italian.config import GROUPS, ConfigError, Segment
from clip_italian.training import optim
from clip_italian.training.optim import DECAY_RULES, Optimizer, Phase
from tests import toy
from tests.model.checkpoints import tiny_model
from tests.tiny import (
    TINY_BEIT,
    TINY_BERT,
    TINY_CLIP,
    TINY_DINOV2,
    TINY_DISTILBERT,
    TINY_ELECTRA,
    TINY_ROBERTA,
    TINY_VIT,
)

SHARED_POSITIONS = {
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": True,
    "use_absolute_position_embeddings": True,
}


def test_each_parameter_has_one_group_and_they_join_again():
    params = toy.init_params(bias=True)
    grouped = optim.split(params, learn_logit_scale=True)
    assert {g: sorted(part) for g, part in grouped.items()} == {
        "vision": ["vision_model/layer/bias", "vision_model/layer/kernel"],
        "text": ["text_model/embeddings/embedding"],
        "projection": ["text_projection/kernel", "visual_projection/kernel"],
        "logit": ["logit_bias", "logit_scale"],
    }
    assert jax.tree.structure(optim.join(grouped)) == jax.tree.structure(params)
    fixed = optim.split(params, learn_logit_scale=False)
    assert list(fixed["fixed"]) == ["logit_scale"] and list(fixed["logit"]) == ["logit_bias"]


@pytest.mark.parametrize("path", ["adapter/kernel", "vision_models/kernel"])
def test_a_parameter_without_a_group_is_an_error(path):
    with pytest.raises(ConfigError, match=f"'{path}' matches 0 group rules"):
        optim.group_of(path, learn_logit_scale=True)


def test_two_rules_for_one_parameter_are_an_error():
    with pytest.raises(ConfigError, match="matches 2 decay rules"):
        optim.match_one(((r".*/kernel", True), (r".*", False)), "a/kernel", "decay")


@pytest.mark.parametrize(
    ("path", "decayed"),
    [
        ("vision_model/encoder/layer/0/attention/output/dense/kernel", True),
        ("text_model/embeddings/word_embeddings/embedding", True),
        ("vision_model/encoder/layer/0/layernorm_before/scale", False),
        ("vision_model/embeddings/cls_token", False),
        ("vision_model/embeddings/position_embeddings", False),
        ("vision_model/vision_model/embeddings/class_embedding", False),
        ("text_model/pooler/dense/bias", False),
        ("logit_scale", False),
        ("logit_bias", False),
    ],
)
def test_decay_rules(path, decayed):
    assert optim.match_one(DECAY_RULES, path, "decay") is decayed


def test_phases_follow_thaw_steps():
    config = toy.config(steps=100, vision_thaw_step=40, text_thaw_step=10)
    phases = optim.phases(config.optim)
    assert phases == (
        Phase(0, 10, ("projection", "logit")),
        Phase(10, 40, ("text", "projection", "logit")),
        Phase(40, None, ("vision", "text", "projection", "logit")),
    )
    found = [phases.index(optim.phase_at(phases, step)) for step in (0, 9, 10, 39, 40, 1000)]
    assert found == [0, 0, 1, 1, 2, 2]


def test_a_tower_with_no_thaw_step_stays_frozen():
    config = toy.config(steps=20, vision_thaw_step=None, text_thaw_step=None)
    assert optim.phases(config.optim) == (Phase(0, None, ("projection", "logit")),)


def test_a_segment_of_rate_zero_freezes_again():
    segments = (
        Segment("projection", 0, 1.0, 0, 10),
        Segment("text", 0, 1.0, 0, 10),
        Segment("text", 5, 0.0, 0, 5),
    )
    config = toy.config(segments=segments)
    assert [p.moving for p in optim.phases(config.optim)] == [
        ("text", "projection", "logit"),
        ("projection", "logit"),
    ]


def test_schedule_is_zero_until_the_thaw_then_warms_up_and_decays():
    config = toy.config(steps=100, learning_rate=1.0, warmup_steps=10, vision_thaw_step=20)
    rate = optim.learning_rate(config.optim, "vision")
    # 20 + 10 of warm-up, then a cosine of 70 steps; its middle is step 65.
    found = [float(rate(step)) for step in (0, 19, 20, 25, 30, 65, 100, 150)]
    np.testing.assert_allclose(found, [0, 0, 0, 0.5, 1.0, 0.5, 0, 0], atol=1e-6)
    projection = optim.learning_rate(config.optim, "projection")
    np.testing.assert_allclose([projection(5), projection(55)], [0.5, 0.5], atol=1e-6)


@pytest.mark.parametrize(("shape", "at_60"), [("linear", 0.5), ("constant", 1.0)])
def test_other_decays(shape, at_60):
    config = toy.config(steps=100, learning_rate=1.0, warmup_steps=20, schedule=shape)
    rate = optim.learning_rate(config.optim, "text")
    np.testing.assert_allclose([rate(10), rate(20), rate(60)], [0.5, 1.0, at_60], atol=1e-6)


def test_groups_have_their_own_rates_and_the_scale_follows_the_projections():
    config = toy.config(
        learning_rate=1.0, vision_learning_rate=0.25, projection_learning_rate=2.0, warmup_steps=0
    )
    rates = {g: float(optim.learning_rate(config.optim, g)(0)) for g in ("vision", "text", "logit")}
    assert rates == {"vision": 0.25, "text": 1.0, "logit": 2.0}


def test_a_segment_restarts_its_group():
    segments = (Segment("projection", 0, 1.0, 0, 50), Segment("projection", 26, 0.2, 2, 14))
    rate = optim.learning_rate(toy.config(segments=segments).optim, "projection")
    np.testing.assert_allclose(
        [rate(0), rate(25), rate(26), rate(27), rate(28), rate(40)],
        [1, 0.5, 0, 0.1, 0.2, 0],
        atol=1e-6,
    )


def test_the_state_holds_moving_groups_only():
    config = toy.config()
    optimizer = Optimizer(config.optim, learn_logit_scale=True)
    params = toy.init_params()
    frozen = optimizer.enter(params, {}, Phase(0, 1, ("projection",)))
    assert list(frozen) == ["projection"]
    paths = jax.tree_util.tree_leaves_with_path(frozen)
    assert not [p for p, _ in paths if "_model" in jax.tree_util.keystr(p)]


def test_entering_a_phase_keeps_moments_and_bears_new_ones():
    optimizer = Optimizer(toy.config().optim, learn_logit_scale=True)
    params = toy.init_params()
    state = optimizer.enter(params, {}, Phase(0, 1, ("projection",)))
    marked = jax.tree.map(lambda x: x + 1, state)
    entered = optimizer.enter(params, marked, Phase(1, 2, ("text", "projection")))
    jax.tree.map(np.testing.assert_array_equal, entered["projection"], marked["projection"])
    assert all(not np.any(x) for x in jax.tree.leaves(entered["text"]))
    assert list(optimizer.enter(params, entered, Phase(2, 3, ("text",)))) == ["text"]


def update(config, grad, weight, step=0, repeat=1):
    optimizer = Optimizer(config.optim, learn_logit_scale=True)
    params = {"projection": {"visual_projection/kernel": jnp.asarray(weight, jnp.float32)}}
    grads = jax.tree.map(lambda _: jnp.asarray(grad, jnp.float32), params)
    state = optimizer.enter(optim.join(params), {}, Phase(0, 9, ("projection",)))
    for _ in range(repeat):
        updates, state = optimizer.update(grads, state, params, jnp.asarray(step))
    return np.asarray(updates["projection"]["visual_projection/kernel"])


def test_adamw_by_hand():
    # The first step of Adam is the sign of the gradient; then decay of 0.1 times the weight.
    config = toy.config(steps=10, learning_rate=0.5, weight_decay=0.1, schedule="constant")
    found = update(config, [[3.0, -4.0]], [[1.0, 2.0]])
    np.testing.assert_allclose(found, [[-0.5 - 0.05, 0.5 - 0.1]], rtol=1e-5)


def test_adabelief_by_hand():
    # First step: m̂ = g, ŝ = (g - 0.1 g)² and no eps outside the root: g / 0.9 |g| = ±1.1111.
    config = toy.config(steps=10, learning_rate=0.5, optimizer="adabelief", schedule="constant")
    found = update(config, [[3.0, -4.0]], [[1.0, 2.0]])
    np.testing.assert_allclose(found, [[-0.5555556, 0.5555556]], rtol=1e-5)


def test_adaptive_clipping_is_per_unit():
    # Columns (units) have weight norms 1 and 5 and gradient norms 2 and 0.02, limits 0.01 × norm:
    # the first is cut to 0.01, the second stays; Adam's first moment shows the sizes.
    config = toy.config(steps=10, agc_clip=0.01, schedule="constant")
    optimizer = Optimizer(config.optim, learn_logit_scale=True)
    weights = jnp.asarray([[1.0, 3.0], [0.0, 4.0]])
    grads = jnp.asarray([[2.0, 0.02], [0.0, 0.0]])
    params = {"projection": {"visual_projection/kernel": weights}}
    state = optimizer.enter(optim.join(params), {}, Phase(0, 9, ("projection",)))
    _, state = optimizer.update(
        {"projection": {"visual_projection/kernel": grads}}, state, params, jnp.asarray(0)
    )
    moment = next(x for x in jax.tree.leaves(state) if np.ndim(x) == 2)
    np.testing.assert_allclose(moment, 0.1 * np.array([[0.01, 0.02], [0, 0]]), rtol=1e-5)


def test_the_global_norm_is_over_all_moving_groups():
    config = toy.config(steps=10, clip_norm=1.0, schedule="constant")
    optimizer = Optimizer(config.optim, learn_logit_scale=True)
    params = {g: {f"{g}_model/kernel": jnp.ones((1, 1))} for g in ("vision", "text")}
    grads = {
        "vision": {"vision_model/kernel": jnp.full((1, 1), 3.0)},
        "text": {"text_model/kernel": jnp.full((1, 1), 4.0)},
    }
    state = optimizer.enter(optim.join(params), {}, Phase(0, 9, ("vision", "text")))
    _, state = optimizer.update(grads, state, params, jnp.asarray(0))
    moments = [float(x[0, 0]) for g in ("vision", "text") for x in jax.tree.leaves(state[g])[1:2]]
    np.testing.assert_allclose(moments, [0.1 * 0.6, 0.1 * 0.8], rtol=1e-5)


def test_rates_follow_the_global_step_not_the_moments_count():
    config = toy.config(steps=100, learning_rate=1.0, schedule="linear")
    fresh = update(config, [[1.0]], [[0.0]], step=75)
    np.testing.assert_allclose(fresh, [[-0.25]], rtol=1e-5)
    again = update(config, [[1.0]], [[0.0]], step=75, repeat=3)
    np.testing.assert_allclose(again, [[-0.25]], rtol=1e-4)


def test_the_logit_group_may_have_segments_of_its_own():
    own = Segment("logit", 3, 0.5, 0, 10)
    config = toy.config(segments=(Segment("projection", 0, 1.0, 0, 10), own))
    assert [s for s in optim.segments(config.optim) if s.group == "logit"] == [own]
    assert dataclasses.asdict(own)["start_step"] == 3


@pytest.mark.parametrize(
    "towers",
    [
        {"vision_config": TINY_DINOV2, "text_config": TINY_DISTILBERT},
        {"vision_config": TINY_BEIT, "text_config": TINY_ELECTRA},
        {"vision_config": TINY_CLIP, "text_config": TINY_ROBERTA},
    ],
    ids=["dinov2-distilbert", "beit-electra", "clip-roberta"],
)
def test_every_parameter_of_every_tower_has_one_rule(towers):
    shapes = traverse_util.flatten_dict(tiny_model("sigmoid", **towers).shapes(), sep="/")
    decayed = {path: optim.match_one(optim.DECAY_RULES, path, "decay") for path in shapes}
    assert {optim.group_of(path, learn_logit_scale=True) for path in shapes} == set(GROUPS)
    kernels = {path for path in shapes if path.endswith(("/kernel", "/embedding"))}
    assert {path for path, value in decayed.items() if value} == kernels


ALL_TOWERS = pytest.mark.parametrize(
    ("vision", "text"),
    [
        (TINY_VIT, TINY_BERT),
        (TINY_CLIP, TINY_ROBERTA),
        (TINY_DINOV2, TINY_DISTILBERT),
        (TINY_BEIT, TINY_ELECTRA),
        ({**TINY_BEIT, **SHARED_POSITIONS}, TINY_BERT),
    ],
    ids=["vit-bert", "clip-roberta", "dinov2-distilbert", "beit-electra", "beit-shared"],
)


@ALL_TOWERS
def test_layer_decay_knows_every_parameter_of_every_tower(vision, text):
    two = {"n_layers": 2} if "n_layers" in text else {"num_hidden_layers": 2}
    model = tiny_model(
        vision_config={**vision, "num_hidden_layers": 2}, text_config={**text, **two}
    )
    grouped = optim.split(model.shapes(), learn_logit_scale=True)
    for tower in ("vision", "text"):
        factors = optim.layer_factors(0.5, grouped[tower])
        assert factors.keys() == grouped[tower].keys()
        layers = {path: value for path, value in factors.items() if "/0/" in path or "/1/" in path}
        assert set(layers.values()) == {0.5, 0.25}
        assert all((value == 0.5) == ("/1/" in path) for path, value in layers.items())
        bottom = {path for path, value in factors.items() if value == 0.125}
        assert any("word_embedding" in path or "patch_embedding" in path for path in bottom)
        rest = factors.keys() - layers.keys()
        words = ("embeddings/", "embeddings_project/", "pre_layrnorm/")
        assert bottom == {path for path in rest if any(word in path for word in words)}
        assert {factors[path] for path in rest - bottom} <= {1.0}
    assert set(optim.layer_factors(0.5, grouped["projection"]).values()) == {1.0}


def test_no_layer_decay_knows_no_rule():
    path = "vision_model/somewhere/kernel"
    assert optim.layer_factors(1.0, [path]) == {path: 1.0}
    with pytest.raises(ConfigError, match="'somewhere/kernel' matches 0 layer rules"):
        optim.layer_factors(0.9, [path])


@pytest.mark.parametrize("optimizer", ["adamw", "adabelief"])
def test_layer_decay_multiplies_the_groups_learning_rate(optimizer):
    paths = ("embeddings/a/embedding", "encoder/layer/0/b/kernel", "encoder/layer/1/b/kernel")
    text = {f"text_model/{path}": jnp.ones((2, 2)) for path in (*paths, "pooler/dense/bias")}
    params = {"text": text, "projection": {"text_projection/kernel": jnp.ones((2, 2))}}
    grads = jax.tree.map(lambda x: x * jnp.asarray([[3.0, -1.0]]), params)
    updates = []
    for decay in (1.0, 0.5):
        config = toy.config(steps=10, optimizer=optimizer, schedule="linear", layer_decay=decay)
        one = Optimizer(config.optim, learn_logit_scale=True)
        state = one.enter(optim.join(params), {}, Phase(0, 9, ("text", "projection")))
        updates.append(jax.jit(one.update)(grads, state, params, jnp.asarray(4))[0])
    full, scaled = updates
    for path, factor in zip(text, (0.125, 0.25, 0.5, 1.0), strict=True):
        np.testing.assert_allclose(scaled["text"][path], factor * full["text"][path], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, scaled["projection"], full["projection"])
