import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_italian.config import ConfigError
from tests.model.checkpoints import pixels, random_like, run, tiny_model
from tests.tiny import TINY_BEIT, TINY_CLIP, TINY_DINOV2, TINY_VIT

CLS_BEIT = {
    **TINY_BEIT,
    "use_mean_pooling": False,
    "use_relative_position_bias": False,
    "use_absolute_position_embeddings": True,
}
TOWERS = {
    "vit": TINY_VIT,
    "clip": TINY_CLIP,
    "dinov2": TINY_DINOV2,
    "beit": TINY_BEIT,
    "beit-cls": CLS_BEIT,
}
every_tower = pytest.mark.parametrize("name", TOWERS)


def model_of(name, **fields):
    vision = {**TOWERS[name], "num_hidden_layers": 2, **fields}
    model = tiny_model(vision_config=vision)
    return model, random_like(model.shapes())


def whole(module, images):
    """The vision tower as transformers runs it, outside of `running`."""
    with jax.numpy_rank_promotion("allow"):
        return module.vision_model(module._normalised_pixels(images))


def embeds_of(module, tokens):
    vectors = module.visual_projection(tokens)
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


@every_tower
def test_the_token_that_a_tower_pools_comes_out_as_its_picture(name):
    model, params = model_of(name)
    images = pixels(3)

    def pooled(module, images):
        outputs = whole(module, images)
        hidden = outputs.last_hidden_state
        token = hidden[:, 1:].mean(1, keepdims=True) if name == "beit" else hidden[:, :1]
        with jax.numpy_rank_promotion("allow"):
            tokens = module.vision_pool_tokens(
                module.vision_model, outputs.replace(last_hidden_state=token)
            )
        return embeds_of(module, tokens[:, 0])

    found = run(model, params, images, method=pooled)
    expected = np.asarray(run(model, params, images, method="encode_image"))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected - expected[0]).max() > 0.01, "pictures can be told apart"


def values_alone(next_fun, args, kwargs, context):
    """Last layer: the values take the place of attention's output."""
    module = context.module
    if context.method_name == "__call__" and "1" in module.path:
        if type(module).__name__.endswith("SelfAttention"):
            return (module.value(args[0]),)
        if type(module).__name__ == "FlaxCLIPAttention":
            return (module.out_proj(module.v_proj(kwargs["hidden_states"])),)
    return next_fun(*args, **kwargs)


@every_tower
def test_patches_are_the_values_of_the_last_layer_or_where_pooled_themselves_whole(name):
    model, params = model_of(name)
    images = pixels(3)

    def plain(module, images):
        with contextlib.ExitStack() as stack:
            if "beit" not in name:
                stack.enter_context(nn.intercept_methods(values_alone))
            outputs = whole(module, images)
        with jax.numpy_rank_promotion("allow"):
            tokens = module.vision_pool_tokens(module.vision_model, outputs)[:, 1:]
        return embeds_of(module, tokens).reshape(3, 2, 2, 16)

    expected = run(model, params, images, method=plain)
    patches = run(model, params, images, method="encode_patches")
    assert patches.shape == (3, 2, 2, 16) and patches.dtype == jnp.float32
    np.testing.assert_allclose(patches, expected, atol=1e-6)
    assert np.ptp(np.asarray(patches).reshape(3, 4, 16), axis=1).max(1).min() > 1e-2


@every_tower
@pytest.mark.parametrize("place", [(0, 2), (1, 2), (2, 1)])
def test_patches_lie_as_in_the_picture(name, place):
    model, params = model_of(name, num_hidden_layers=1, image_size=48)
    row, column = (16 * number for number in place)
    images = np.full((2, 48, 48, 3), 90, np.uint8)
    images[1, row : row + 16, column : column + 16] = (200, 30, 30)
    patches = np.asarray(run(model, params, images, method="encode_patches"))
    moved = np.abs(patches[1] - patches[0]).sum(-1)
    assert patches.shape == (2, 3, 3, 16)
    assert np.unravel_index(moved.argmax(), moved.shape) == place
    if "beit" not in name:  # with one layer a patch says what is in its own place, and nothing else
        assert np.count_nonzero(moved > 1e-6) == 1


def test_patches_in_bfloat16_come_out_as_float32():
    exact, rough = (tiny_model(dtype=dtype) for dtype in ("float32", "bfloat16"))
    params, images = random_like(exact.shapes()), pixels(2)
    one, two = (run(m, params, images, method="encode_patches") for m in (exact, rough))
    assert two.dtype == jnp.float32
    assert 1e-5 < np.abs(one - two).max() < 0.05


def test_no_patch_is_dropped():
    model = tiny_model(patch_dropout=0.5)
    params, images = random_like(model.shapes()), pixels(2)
    expected = run(tiny_model(), params, images, method="encode_patches")
    patches = run(model, params, images, method="encode_patches")
    np.testing.assert_array_equal(patches, expected)


def test_pictures_of_another_size_are_refused():
    model = tiny_model()
    params = random_like(model.shapes())
    with pytest.raises(ConfigError, match=r"pixel_values are .*takes uint8 \[n, 32, 32, 3\]"):
        run(model, params, pixels(2, size=16), method="encode_patches")
