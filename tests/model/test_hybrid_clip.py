import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from transformers import (
    AutoConfig,
    FlaxDistilBertModel,
    FlaxElectraModel,
    FlaxVisionTextDualEncoderModel,
    VisionTextDualEncoderConfig,
)
from transformers.models.roberta.modeling_flax_roberta import create_position_ids_from_input_ids

from clip_italian.batch import TokenGroup
from clip_italian.config import ConfigError
from tests.model.checkpoints import UNOPTIMISED, pixels, random_like, run, tiny_model, tokens
from tests.tiny import (
    TINY_BEIT,
    TINY_BERT,
    TINY_CLIP,
    TINY_DINOV2,
    TINY_DISTILBERT,
    TINY_ELECTRA,
    TINY_ROBERTA,
    TINY_VIT,
    TINY_XLM_ROBERTA,
)


def shape_and_dtype(array):
    return array.shape, array.dtype


def reference(monkeypatch, vision_config, text_config, params):
    """Transformers' own model, jitted; its random start would take a minute and is not used."""
    configs = [AutoConfig.for_model(**config) for config in (vision_config, text_config)]
    config = VisionTextDualEncoderConfig.from_vision_text_configs(*configs, projection_dim=16)
    monkeypatch.setattr(FlaxVisionTextDualEncoderModel, "init_weights", lambda *_, **__: params)
    theirs = FlaxVisionTextDualEncoderModel(config)
    return jax.jit(lambda params, inputs: theirs(**inputs, params=params))


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        pytest.param(TINY_VIT, TINY_BERT, id="vit-bert"),
        pytest.param(TINY_CLIP, TINY_BERT, id="clip-bert"),
        pytest.param(TINY_VIT, TINY_ROBERTA, id="vit-roberta"),
        pytest.param(TINY_CLIP, TINY_XLM_ROBERTA, id="clip-xlm-roberta"),
        pytest.param(TINY_DINOV2, TINY_BERT, id="dinov2-bert"),
        pytest.param(TINY_BEIT, TINY_BERT, id="beit-bert"),
        pytest.param(
            {
                **TINY_BEIT,
                "use_mean_pooling": False,
                "use_relative_position_bias": False,
                "use_shared_relative_position_bias": True,
                "use_absolute_position_embeddings": True,
            },
            TINY_BERT,
            id="beit-cls-bert",
        ),
    ],
)
def test_equals_transformers(vision, text, record_property, monkeypatch):
    model = tiny_model(vision_config=vision, text_config=text)
    params = random_like(model.shapes())
    params["logit_scale"] = np.float32(np.log(20.0))
    images, captions = pixels(6), tokens(6, pad=int(text is not TINY_BERT))
    scaled = (images.astype(np.float32) / 255 - model.image_mean) / model.image_std
    inputs = {"pixel_values": scaled.transpose(0, 3, 1, 2).astype(np.float32)}
    inputs |= captions._asdict()
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        if text is not TINY_BERT:  # their wrapper counts from 0 for every tower
            ids = captions.input_ids
            inputs["position_ids"] = create_position_ids_from_input_ids(ids, padding_idx=1)
        expected = reference(monkeypatch, vision, text, params)(params, inputs)
    ours = run(model, params, images, (captions,))
    logits = jnp.exp(ours.logit_scale) * jnp.matmul(
        ours.image_embeds, ours.text_embeds.T, precision="highest"
    )
    for name, mine, other in (
        ("image_embeds", ours.image_embeds, expected.image_embeds),
        ("text_embeds", ours.text_embeds, expected.text_embeds),
        ("logits / scale", logits / 20, expected.logits_per_image / 20),
    ):
        difference = float(np.abs(mine - other).max())
        record_property(name, difference)
        assert difference <= 1e-6, name
    # Rows must differ, or the comparison says nothing.
    assert np.ptp(logits, axis=0).min() > 1e-2 and np.ptp(logits, axis=1).min() > 1e-2


@pytest.mark.parametrize(
    ("text", "wrapper"),
    [
        pytest.param(TINY_DISTILBERT, FlaxDistilBertModel, id="distilbert"),
        pytest.param(TINY_ELECTRA, FlaxElectraModel, id="electra"),
    ],
)
def test_text_towers_without_a_pooler(text, wrapper, monkeypatch):
    """VisionTextDualEncoder does not take these: held against the tower's own class."""
    model = tiny_model(text_config=text)
    params, captions = random_like(model.shapes()), tokens(6)
    inputs: dict = captions._asdict()
    if text is TINY_ELECTRA:  # its Flax wrapper alone takes ones where none are given
        inputs["token_type_ids"] = np.zeros_like(captions.input_ids)
    monkeypatch.setattr(wrapper, "init_weights", lambda *_, **__: params["text_model"])
    theirs = wrapper(AutoConfig.for_model(**text))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        hidden = theirs(**inputs, params=params["text_model"]).last_hidden_state
    projected = np.asarray(hidden)[:, 0] @ params["text_projection"]["kernel"]
    expected = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    ours = run(model, params, (captions,), method="encode_text")
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert np.ptp(ours, axis=0).min() > 1e-2


@pytest.mark.parametrize(
    ("fields", "method", "inputs"),
    [
        pytest.param({"vision_config": TINY_VIT}, "encode_image", pixels(4), id="vit"),
        pytest.param({"vision_config": TINY_CLIP}, "encode_image", pixels(4), id="clip"),
        pytest.param({"vision_config": TINY_DINOV2}, "encode_image", pixels(4), id="dinov2"),
        pytest.param({"vision_config": TINY_BEIT}, "encode_image", pixels(4), id="beit"),
        pytest.param({"text_config": TINY_BERT}, "encode_text", (tokens(4),), id="bert"),
        pytest.param({"text_config": TINY_DISTILBERT}, "encode_text", (tokens(4),), id="distil"),
        pytest.param({"text_config": TINY_ELECTRA}, "encode_text", (tokens(4),), id="electra"),
    ],
)
def test_bfloat16_compute(fields, method, inputs):
    exact = tiny_model(**fields)
    rough = tiny_model(**fields, dtype="bfloat16")
    params = random_like(exact.shapes())
    shapes = jax.tree.map(shape_and_dtype, rough.shapes())
    assert shapes == jax.tree.map(shape_and_dtype, params)  # parameters stay float32
    one = run(exact, params, inputs, method=method)
    two = run(rough, params, inputs, method=method)
    assert two.dtype == jnp.float32
    pool = method.replace("encode", "pool")
    pooled = jax.eval_shape(
        lambda params: rough.module.apply({"params": params}, inputs, method=pool), params
    )
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(two, axis=-1), 1, atol=1e-6)
    assert 1e-5 < np.abs(one - two).max() < 0.03  # really computed in bfloat16, and near


def test_pixels_are_normalised_on_the_device():
    constants = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.4, 0.5, 0.6)}
    model = tiny_model(vision_config={**TINY_VIT, **constants})

    class Spy(nn.Module):
        def __call__(self, pixel_values, deterministic):
            return pixel_values.reshape(1, -1)

    module = model.module.clone(vision_model=Spy(), vision_pool=lambda outputs: outputs)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    images[0, 0, 0] = (255, 51, 102)
    params = {"logit_scale": np.float32(0)}
    pooled = module.apply({"params": params}, images, method="pool_image")
    # (1 - 0.1) / 0.4, (0.2 - 0.2) / 0.5, (0.4 - 0.3) / 0.6; then the same of 0
    np.testing.assert_allclose(pooled[0, :3], [2.25, 0.0, 1 / 6], atol=1e-6)
    np.testing.assert_allclose(pooled[0, 3:6], [-0.25, -0.4, -0.5], atol=1e-6)


def test_groups_are_joined_within_each_shard():
    model = tiny_model()
    params = random_like(model.shapes())
    captions = tokens(8, length=6)

    def rows(*picked):
        return TokenGroup(*(array[np.array(picked)] for array in captions))

    one_by_one = run(model, params, (captions,), method="encode_text")
    # Two shards, each of one group of 3 and one of 1: caption k belongs to row k.
    padded = TokenGroup(*(np.pad(array, ((0, 0), (0, 5))) for array in rows(3, 7)))
    groups = (rows(0, 1, 2, 4, 5, 6), padded)
    joined = run(model, params, groups, shards=2, method="encode_text")
    np.testing.assert_allclose(joined, one_by_one, atol=1e-6)
    # In one shard the order is simply group after group.
    flat = run(model, params, groups, shards=1, method="encode_text")
    np.testing.assert_allclose(flat, one_by_one[jnp.array([0, 1, 2, 4, 5, 6, 3, 7])], atol=1e-6)
    assert np.abs(flat - joined).max() > 0.05


def test_rows_must_divide_by_shards():
    model = tiny_model()
    params = random_like(model.shapes())
    with pytest.raises(ConfigError, match="batch_size: 5 captions do not divide by 2"):
        run(model, params, (tokens(5),), shards=2, method="encode_text")


def test_padding_does_not_matter():
    model = tiny_model(text_config=TINY_ROBERTA)
    params = random_like(model.shapes())
    short = tokens(4, length=6, pad=1)
    padded = TokenGroup(
        np.pad(short.input_ids, ((0, 0), (0, 9)), constant_values=1),
        np.pad(short.attention_mask, ((0, 0), (0, 9))),
    )
    one, two = (run(model, params, (group,), method="encode_text") for group in (short, padded))
    np.testing.assert_allclose(one[:3], two[:3], atol=1e-6)
    assert np.isfinite(two).all()


def test_roberta_positions_start_after_the_padding_index():
    module = tiny_model(text_config=TINY_ROBERTA).module
    group = TokenGroup(jnp.array([[0, 9, 2, 1]]), jnp.array([[1, 1, 1, 0]]))
    np.testing.assert_array_equal(module.text_inputs(group)["position_ids"], [[2, 3, 4, 1]])
    bert = tiny_model().module.text_inputs(group)
    np.testing.assert_array_equal(bert["position_ids"], [[0, 1, 2, 3]])
    np.testing.assert_array_equal(bert["token_type_ids"], [[0, 0, 0, 0]])


@pytest.mark.parametrize("text", [TINY_BERT, TINY_ROBERTA], ids=["bert", "roberta"])
def test_captions_beyond_the_positions_are_refused(text):
    model = tiny_model(text_config=text)
    assert model.max_positions == 24
    params = random_like(model.shapes())
    full = run(model, params, (tokens(2, length=24),), method="encode_text")
    assert np.isfinite(full).all()
    with pytest.raises(ConfigError, match=r"max_length: captions of 25 tokens.* positions for 24"):
        run(model, params, (tokens(2, length=25),), method="encode_text")


@pytest.mark.parametrize(
    "images",
    [pixels(2, size=16), pixels(2).astype(np.float32), pixels(2)[..., :1], pixels(2)[0]],
    ids=["size", "float", "grey", "one"],
)
def test_wrong_images_are_refused(images):
    model = tiny_model()
    params = random_like(model.shapes())
    with pytest.raises(ConfigError, match=r"pixel_values are .*takes uint8 \[n, 32, 32, 3\]"):
        run(model, params, images, method="encode_image")


def test_a_zero_projection_gives_zeros_and_finite_gradients():
    model = tiny_model()
    params = random_like(model.shapes())
    params["visual_projection"]["kernel"] *= 0

    def total(params):
        return model.module.apply({"params": params}, pixels(2), method="encode_image").sum()

    value, gradient = jax.jit(jax.value_and_grad(total), compiler_options=UNOPTIMISED)(params)
    assert value == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_scale_is_a_log_and_bias_belongs_to_the_sigmoid_loss():
    plain, sigmoid = tiny_model(logit_scale=20.0), tiny_model("sigmoid", logit_bias=-10.0)
    params, batch = plain.init(0), (pixels(1), (tokens(1),))
    assert params["logit_scale"].shape == () and params["logit_scale"].dtype == np.float32
    np.testing.assert_allclose(params["logit_scale"], 2.995732, atol=1e-6)  # log 20
    assert "logit_bias" not in params
    assert jax.eval_shape(plain.module.apply, {"params": params}, *batch).logit_bias is None
    outputs = run(sigmoid, sigmoid.init(0), *batch)
    assert outputs.logit_scale == params["logit_scale"]
    assert outputs.logit_bias.shape == () and outputs.logit_bias == -10


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        pytest.param(TINY_VIT, TINY_BERT, id="vit-bert"),
        pytest.param(TINY_DINOV2, TINY_DISTILBERT, id="dinov2-distilbert"),
        pytest.param(TINY_BEIT, TINY_ELECTRA, id="beit-electra"),
    ],
)
def test_dropout_of_each_tower(vision, text):
    model = tiny_model(vision_config=vision, text_config=text, dropout=0.5)
    params, batch = random_like(model.shapes()), (pixels(2), (tokens(2),))
    rngs = {"dropout": jax.random.key(0)}
    fixed = run(model, params, *batch, rngs=rngs)
    image_only = run(model, params, *batch, vision_deterministic=False, rngs=rngs)
    np.testing.assert_allclose(image_only.text_embeds, fixed.text_embeds, atol=1e-6)
    assert np.abs(image_only.image_embeds - fixed.image_embeds).max() > 1e-2
    text_only = run(model, params, *batch, text_deterministic=False, rngs=rngs)
    np.testing.assert_allclose(text_only.image_embeds, fixed.image_embeds, atol=1e-6)
    assert np.abs(text_only.text_embeds - fixed.text_embeds).max() > 1e-2


def test_dropout_reaches_the_configurations():
    model = tiny_model(vision_config=TINY_CLIP, dropout=0.5)
    assert model.vision_config.attention_dropout == 0.5
    assert model.text_config.hidden_dropout_prob == 0.5
    assert model.text_config.attention_probs_dropout_prob == 0.5
    # Whole layers are never dropped: BEiT's own default is 0.1.
    assert tiny_model(vision_config=TINY_BEIT).vision_config.drop_path_rate == 0
    model = tiny_model()  # BERT's own default is 0.1
    assert model.vision_config.hidden_dropout_prob == 0
    assert model.text_config.hidden_dropout_prob == 0


def test_parameter_tree():
    names = set(flatten_dict(tiny_model("sigmoid", vision_config=TINY_CLIP).shapes(), sep="/"))
    assert {
        "vision_model/vision_model/embeddings/class_embedding",
        "text_model/pooler/dense/kernel",
        "visual_projection/kernel",
        "text_projection/kernel",
        "logit_scale",
        "logit_bias",
    } <= names
    assert {name.partition("/")[0] for name in names} == {
        "vision_model", "text_model", "visual_projection", "text_projection",
        "logit_scale", "logit_bias",
    }  # fmt: skip
