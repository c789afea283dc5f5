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


VALUES = {"value", "v_proj"}
NORMS = {"layernorm_after", "norm2", "layer_norm2"}  # what they see is what attention has added to


def watching(call):
    """Flax calls inside as `call(module, next_fun, args, kwargs)` says."""

    def intercept(next_fun, args, kwargs, context):
        if context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        return call(context.module, lambda: next_fun(*args, **kwargs), args)

    return nn.intercept_methods(intercept)


def direct_parts(module, images, read):
    """Embeddings, last hidden states and each patch's part, by leaving out its values one by one.

    Each layer runs on what it got, once whole and once without the values of each patch; the
    difference after attention, in the tokens that are read, is what that patch gave them.
    """
    gone, middle, inputs, parts = None, jnp.zeros(()), [], []

    def call(part, following, args):
        nonlocal gone, middle
        if part.name in VALUES and gone is not None:
            return following().at[:, gone].set(0)
        if part.name in NORMS:
            middle = args[0]
        if type(part) is not module.vision_running.layer:
            return following()
        found, seen = following(), middle
        for number in range(len(read)):
            gone = number
            following()
            parts.append(jnp.einsum("k,nkw->nw", read, seen - middle))
        gone = None
        inputs.extend((args[0], found[0]))
        return found

    with jax.numpy_rank_promotion("allow"), watching(call):
        module.vision_model(module._normalised_pixels(images))
    layers = [jnp.stack(parts[i : i + len(read)], 1) for i in range(0, len(parts), len(read))]
    return inputs[-1], sum(layers) + read[None, :, None] * inputs[0]


def pooled_as(module, images, vector):
    """Embedding of pictures whose last layer gives [n, width] in the place of each token."""

    def call(part, following, args):
        found = following()
        if type(part) is module.vision_running.layer and part.name == "1":
            return (jnp.broadcast_to(vector[:, None], found[0].shape),)
        return found

    with jax.numpy_rank_promotion("allow"), watching(call):
        outputs = module.vision_model(module._normalised_pixels(images))
    embeds = module.visual_projection(module.vision_pool(outputs))
    return embeds / jnp.linalg.norm(embeds, axis=-1, keepdims=True)


@every_tower
def test_a_patch_is_what_goes_when_its_values_reach_the_pooled_token_in_no_layer(name):
    model, params = model_of(name)
    images = pixels(3)
    read = jnp.array([0, 0.25, 0.25, 0.25, 0.25] if name == "beit" else [1.0, 0, 0, 0, 0])

    def plain(module, images):
        last, parts = direct_parts(module, images, read)
        pooled = jnp.einsum("k,nkw->nw", read, last)
        without = [pooled_as(module, images, pooled - parts[:, i]) for i in range(1, 5)]
        return module.encode_image(images)[:, None] - jnp.stack(without, 1)

    expected = run(model, params, images, method=plain).reshape(3, 2, 2, 16)
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


def test_patches_in_bfloat16_come_out_as_float32():
    exact, rough = (tiny_model(dtype=dtype) for dtype in ("float32", "bfloat16"))
    params, images = random_like(exact.shapes()), pixels(2)
    one, two = (run(m, params, images, method="encode_patches") for m in (exact, rough))
    assert two.dtype == jnp.float32
    assert 1e-5 < np.abs(one - two).max() < 0.01 < np.abs(one).max()


def test_no_patch_is_dropped():
    model = tiny_model(patch_dropout=0.5)
    params, images = random_like(model.shapes()), pixels(2)
    expected = run(tiny_model(), params, images, method="encode_patches")
    patches = run(model, params, images, method="encode_patches")
    np.testing.assert_array_equal(patches, expected)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_patches_of_a_model_that_computes_layers_again(remat):
    model = tiny_model(remat=remat)
    params, images = random_like(model.shapes()), pixels(2)
    expected = run(tiny_model(), params, images, method="encode_patches")
    patches = run(model, params, images, method="encode_patches")
    np.testing.assert_array_equal(patches, expected)


def test_pictures_of_another_size_are_refused():
    model = tiny_model()
    params = random_like(model.shapes())
    with pytest.raises(ConfigError, match=r"pixel_values are .*takes uint8 \[n, 32, 32, 3\]"):
        run(model, params, pixels(2, size=16), method="encode_patches")
