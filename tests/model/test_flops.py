"""FLOPs counted from programs, by hand, and those of the towers in docs and papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from clip_italian.batch import TokenGroup
from clip_italian.model.flops import matmul_flops
from tests.model.checkpoints import tiny_model
from tests.tiny import (
    TINY_BEIT,
    TINY_BERT,
    TINY_CLIP,
    TINY_DISTILBERT,
    TINY_ELECTRA,
    TINY_VIT,
)


def like(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


A, B = like(2, 3), like(3, 4)
PRODUCT = 2 * 2 * 3 * 4


def product(a, b):
    return a @ b


@jax.custom_jvp
def with_own_derivative(a, b):
    return a @ b


with_own_derivative.defjvp(lambda primals, tangents: (product(*primals), product(*tangents)))


@jax.custom_vjp
def with_own_gradient(a, b):
    return a @ b


with_own_gradient.defvjp(lambda a, b: (a @ b, (a, b)), lambda kept, g: kept)


@pytest.mark.parametrize(
    "function",
    [
        product,
        jax.jit(product),
        jax.checkpoint(product),
        with_own_derivative,
        with_own_gradient,
        lambda a, b: jnp.tanh(a @ b) + 1,
        lambda a, b: lax.while_loop(lambda n: n < 3, lambda n: n + 1, 0) + a @ b,
    ],
    ids=["plain", "jit", "remat", "custom_jvp", "custom_vjp", "elementwise", "empty while"],
)
def test_a_product_counts_once_wherever_it_stands(function):
    assert matmul_flops(function, A, B) == PRODUCT


def test_batched_products():
    # 5 × 7 products of 2 × 3 by 3 × 4.
    found = matmul_flops(
        lambda a, b: jnp.einsum("hqd,ihkd->ihqk", a, b), like(7, 2, 3), like(5, 7, 4, 3)
    )
    assert found == 5 * 7 * PRODUCT


def test_a_scan_counts_its_rounds():
    def function(a, b):
        def body(carry, _):
            return carry + jax.checkpoint(product)(a, b).sum(), None

        return lax.scan(body, 0.0, None, length=6)

    assert matmul_flops(function, A, B) == 6 * PRODUCT


def test_of_branches_the_dearest():
    def function(a, b):
        return lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a @ b @ b.T @ b)

    assert matmul_flops(function, A, B) == PRODUCT + 2 * 2 * 4 * 3 + PRODUCT


def test_products_in_a_while_loop_are_refused():
    def function(a, b):
        return lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ b.T @ b, a @ b)

    with pytest.raises(NotImplementedError, match="while_loop"):
        matmul_flops(function, A, B)


@pytest.mark.parametrize(("groups", "inputs"), [(1, 6), (2, 3)])
def test_convolutions(groups, inputs):
    def function(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip

    # 3 pictures of 8 × 8 and 6 channels; 4 × 4 places of 2 × 2 pixels; 10 outputs.
    found = matmul_flops(function, like(3, 8, 8, 6), like(2, 2, inputs, 10))
    assert found == 2 * 3 * 4 * 4 * 10 * 2 * 2 * inputs


def test_base_towers_cost_what_the_table_says():
    model = tiny_model(
        vision_config=None, vision_tower="openai/clip-vit-base-patch32", projection_dim=512,
        text_config=None, text_tower="dbmdz/bert-base-italian-xxl-uncased",
    )  # fmt: skip
    lengths = np.array([24, 77, 96])
    found = [model.image_flops, *model.text_flops(lengths)]
    spared = [layer(n, 768, 3072) - last_layer(n, 768, 3072) for n in (50, *lengths)]
    whole = np.add(found, spared)
    assert [round(one / 1e9, 2) for one in whole] == [8.82, 4.10, 13.30, 16.65]
    assert all(0.06 < part < 0.07 for part in spared / whole)
    assert model.trained_image_flops == model.image_flops


def layer(length, width=32, middle=64):
    """Four projections, the feed-forward layer, and two products of attention."""
    return 2 * length * (4 * width**2 + 2 * width * middle) + 2 * 2 * length**2 * width


def last_layer(length, width=32, middle=64, queries=1):
    """Keys and values of all tokens; for the first alone query, output and feed-forward layer."""
    products = 2 * length * 2 * width**2 + 2 * queries * width**2
    products += 2 * (width**2 + 2 * width * middle)
    return products + 2 * 2 * queries * length * width


PATCHES = 2 * 4 * 16 * 16 * 3 * 32  # four of 16 × 16 pixels


def test_a_tiny_model_by_hand():
    model = tiny_model()
    # The pooler sees one token; a ViT's queries are those of all.
    assert model.image_flops == PATCHES + last_layer(5, queries=5) + 2 * 32**2
    np.testing.assert_array_equal(
        model.text_flops(np.array([10, 24])),
        [last_layer(10) + 2 * 32**2, last_layer(24) + 2 * 32**2],
    )


@pytest.mark.parametrize("running", [{"remat": "full"}, {"remat": "dots"}])
def test_how_layers_run_changes_nothing(running):
    towers = {
        "vision_config": {**TINY_VIT, "num_hidden_layers": 3},
        "text_config": {**TINY_BERT, "num_hidden_layers": 2},
    }
    model = tiny_model(**towers, **running)
    assert model.image_flops == PATCHES + 2 * layer(5) + last_layer(5, queries=5) + 2 * 32**2
    assert model.text_flops(np.array(7)) == layer(7) + last_layer(7) + 2 * 32**2


def test_patches_that_are_left_out_cost_nothing_while_the_tower_trains():
    model = tiny_model(patch_dropout=0.5)
    assert model.image_flops == PATCHES + last_layer(5, queries=5) + 2 * 32**2
    assert model.trained_image_flops == PATCHES + last_layer(3, queries=3) + 2 * 32**2


@pytest.mark.parametrize(
    ("vision", "text"),
    [(TINY_CLIP, TINY_DISTILBERT), (TINY_BEIT, TINY_ELECTRA)],
    ids=lambda config: config["model_type"],
)
def test_every_tower_can_be_counted(vision, text):
    model = tiny_model(vision_config=vision, text_config=text)
    assert model.image_flops >= PATCHES + last_layer(5)

    def pool(params, tokens):
        return model.module.apply({"params": params}, (tokens,), method="pool_text")

    ids = jax.ShapeDtypeStruct((2, 11), jnp.int32)
    assert matmul_flops(pool, model.shapes(), TokenGroup(ids, ids)) == 2 * model.text_flops(
        np.array(11)
    )
