import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_italian.batch import Batch, TokenGroup
from clip_italian.config import ConfigError, ModelConfig
from clip_italian.model import layers
from clip_italian.model.towers import build
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

DEPTH = 2


def deep(config, depth):
    name = "n_layers" if "n_layers" in config else "num_hidden_layers"
    return {**config, name: depth}


# Each kind once; the pairs are arbitrary.
PAIRS = {
    "vit bert": (TINY_VIT, TINY_BERT),
    "clip roberta": (TINY_CLIP, TINY_ROBERTA),
    "dinov2 distilbert": (TINY_DINOV2, TINY_DISTILBERT),
    "beit electra": (TINY_BEIT, TINY_ELECTRA),
    "vit xlm-roberta": (TINY_VIT, TINY_XLM_ROBERTA),
}


def model_of(pair, depth=DEPTH, **fields):
    vision, text = (deep(config, depth) for config in PAIRS[pair])
    config = ModelConfig(vision_config=vision, text_config=text, projection_dim=16, **fields)
    return build(config, loss="infonce")


def draw(shapes):
    """Parameters large enough that every layer tells."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)


@functools.cache
def start(pair):
    rng = np.random.default_rng(0)
    text = TokenGroup(
        rng.integers(5, 99, (4, 6)).astype(np.int32),
        np.asarray([[1, 1, 1, 1, 1, 0]] * 4, np.int32),
    )
    pixels = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
    ids = np.zeros((4, 2), np.int32)
    params = draw(model_of(pair).shapes())
    return params, Batch(text=(text,), image_id=ids, caption_id=ids, pixel_values=pixels)


def embeddings(model, params, batch, moving=("vision", "text")):
    output = model.apply_pairs(params, batch, jax.random.key(3), moving, 1)
    return output.image_embeds, output.text_embeds


@functools.cache
def value_and_gradient(pair, depth=DEPTH, **fields):
    return evaluate(model_of(pair, depth, **fields), start(pair)[1])


def evaluate(model, batch):
    """Embeddings, and the gradient of their products."""
    params = draw(model.shapes())

    def score(params):
        image, text = embeddings(model, params, batch)
        return jnp.sum(image * text), (image, text)

    (_, outputs), gradient = jax.jit(jax.value_and_grad(score, has_aux=True))(params)
    return outputs, gradient


def assert_close(tree, expected, tolerance):
    """Largest difference over the largest value of each array."""
    leaves, wanted = jax.tree.leaves(tree), jax.tree.leaves(expected)
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    largest = max(float(np.abs(leaf).max()) for leaf in wanted)
    for leaf, other in zip(leaves, wanted, strict=True):
        assert np.abs(np.subtract(leaf, other)).max() <= tolerance * largest


every_pair = pytest.mark.parametrize("pair", PAIRS)
HOW = ({"remat": "dots"}, {"remat": "full"})


def check_equal(pair, how, depth=DEPTH):
    outputs, gradient = value_and_gradient(pair, depth)
    others, other = value_and_gradient(pair, depth, **how)
    assert_close(others, outputs, 1e-6)
    assert_close(other, gradient, 1e-6)


@pytest.mark.slow
@every_pair
@pytest.mark.parametrize("how", HOW, ids=str)
def test_outputs_and_gradients_stay(pair, how):
    check_equal(pair, how)


def test_outputs_and_gradients_stay_for_one_pair():
    check_equal("clip roberta", {"remat": "full"}, depth=1)


def with_whole_layers(model):
    """The model with a last layer that computes all tokens, as Hugging Face's modules do."""
    module = model.module
    sides = {name: getattr(module, name) for name in ("vision_running", "text_running")}
    whole = {name: dataclasses.replace(how, attended=()) for name, how in sides.items()}
    return dataclasses.replace(model, module=module.clone(**whole))


def check_last_layer(pair, depth, **fields):
    outputs, gradient = value_and_gradient(pair, depth, **fields)
    whole = with_whole_layers(model_of(pair, depth, **fields))
    others, other = evaluate(whole, start(pair)[1])
    assert_close(outputs, others, 1e-6)
    assert_close(gradient, other, 1e-6)


def test_the_last_layer_of_one_pair_computes_the_first_token_alone():
    check_last_layer("clip roberta", 1)


@pytest.mark.slow
@every_pair
@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_last_layer_of_every_kind_computes_the_first_token_alone(pair, remat):
    check_last_layer(pair, DEPTH, remat=remat)


@pytest.mark.slow
def test_dropout_masks_stay_under_remat():
    plain = value_and_gradient("vit bert", dropout=0.3)
    assert_close(value_and_gradient("vit bert", dropout=0.3, remat="full"), plain, 1e-6)
    with pytest.raises(AssertionError):
        assert_close(plain, value_and_gradient("vit bert"), 1e-2)


def kept(pair, depth=DEPTH, **fields):
    """Bytes that the forward pass keeps of 7 pairs; nothing is computed."""
    model, (_, batch) = model_of(pair, depth, **fields), start(pair)

    def backward(params, pixels, ids, mask):
        whole = batch._replace(pixel_values=pixels, text=(TokenGroup(ids, mask),))
        return jax.vjp(lambda params: embeddings(model, params, whole), params)[1]

    arrays = (batch.pixel_values, *batch.text[0])
    like = [jax.ShapeDtypeStruct((7, *a.shape[1:]), a.dtype) for a in arrays]
    leaves = jax.tree.leaves(jax.eval_shape(backward, model.shapes(), *like))
    # No parameter has rows that 7 divides.
    return sum(x.size * x.dtype.itemsize for x in leaves if x.ndim and x.shape[0] % 7 == 0)


def check_kept(pair):
    none, dots, full = (kept(pair, remat=remat) for remat in ("none", "dots", "full"))
    assert none > dots > full
    # One hidden state for each layer: 32 wide, of the class token with 4 patches and of 6 tokens.
    assert full - kept(pair, DEPTH - 1, remat="full") == 7 * 4 * 32 * (5 + 6)
    # And the outputs of its 6 products, five of them 32 wide and one 64.
    own = dots - kept(pair, DEPTH - 1, remat="dots")
    assert own <= 7 * 4 * (32 + 5 * 32 + 64) * (5 + 6)


def test_what_is_kept_for_the_backward_pass():
    check_kept("clip roberta")


@pytest.mark.slow
@every_pair
def test_what_every_kind_keeps(pair):
    check_kept(pair)


@every_pair
def test_parameters_stay_and_every_layer_is_met(pair):
    params, batch = start(pair)
    model = model_of(pair, remat="full")
    assert model.shapes() == model_of(pair).shapes()
    program = str(jax.make_jaxpr(functools.partial(embeddings, model))(params, batch))
    assert len(re.findall(r"= (?:remat|checkpoint)", program)) == 2 * DEPTH


def test_bfloat16_computes_products_and_keeps_parameters_and_outputs():
    model, (_, batch) = model_of("clip roberta", 1, dtype="bfloat16"), start("clip roberta")
    assert {leaf.dtype for leaf in jax.tree.leaves(model.shapes())} == {np.dtype("float32")}
    apply = functools.partial(model.module.apply, method="pool_text")
    found = jax.make_jaxpr(apply)({"params": model.shapes()}, batch.text)
    assert str(found.out_avals[0]) == "float32[4,32]"
    products = [line for line in str(found).splitlines() if "dot_general[" in line]
    assert products and all(":bf16[" in line for line in products)


def test_patch_dropout_keeps_the_class_token_and_other_patches_in_each_image():
    hidden = np.arange(1, 8 * 17 + 1, dtype=np.float32).reshape(8, 17, 1)
    kept = np.asarray(layers.drop_patches(hidden, jax.random.key(0), 0.5))[..., 0]
    assert kept.shape == (8, 1 + 8)
    assert (kept[:, 0] == hidden[:, 0, 0]).all()
    choices = set()
    for row, own in zip(kept, hidden[..., 0], strict=True):
        assert len({*row}) == 9 and {*row} <= {*own}
        choices.add(tuple(sorted(row - own[0])))
    assert len(choices) == 8
    assert layers.drop_patches(hidden, jax.random.key(0), 0.99).shape == (8, 2, 1)


@pytest.mark.parametrize("pair", ["vit bert", "clip roberta", "dinov2 distilbert"])
def test_patch_dropout_in_training_only(pair):
    _, batch = start(pair)
    model = model_of(pair, patch_dropout=0.5)

    def program(*moving):
        found = jax.make_jaxpr(lambda p, b: embeddings(model, p, b, moving))(model.shapes(), batch)
        return str(found)

    # [images, class token and 2 of 4 patches, width]
    assert "f32[4,3,32]" in program("vision") and program("vision").count("top_k[") == 1
    assert "f32[4,3,32]" not in program("text") and "top_k" not in program("text")


def test_patch_dropout_is_refused_where_places_are_relative():
    with pytest.raises(ConfigError, match="patch_dropout = 0.5 is not allowed; give 0: a beit"):
        model_of("beit electra", patch_dropout=0.5)


def test_product_and_its_gradient():
    inputs = jnp.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    kernel = jnp.asarray([[1.0, 0.0, -1.0, 2.0], [0.0, 1.0, 1.0, -2.0]])
    outputs, backward = jax.vjp(layers._product, inputs, kernel)
    assert outputs.tolist() == [[1, 2, 1, -2], [3, 4, 1, -2], [5, 6, 1, -2]]
    gradient = jnp.zeros((3, 4)).at[1, 2].set(1.0)
    by_inputs, by_kernel = backward(gradient)
    assert by_inputs.tolist() == [[0, 0], [-1, 1], [0, 0]]
    assert by_kernel.tolist() == [[0, 0, 3, 0], [0, 0, 4, 0]]
