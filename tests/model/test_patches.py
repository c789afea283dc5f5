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


@every_tower
def test_the_pooled_token_taken_as_a_patch_is_the_picture(name):
    model, params = model_of(name)
    pool_tokens = model.module.vision_pool_tokens

    def pooled_for_all(tower, outputs):
        hidden = outputs.last_hidden_state
        assert hidden.shape == (3, 5, 32), "all tokens, not the first alone"
        pooled = hidden[:, 1:].mean(1) if name == "beit" else hidden[:, 0]
        same = jnp.broadcast_to(pooled[:, None], hidden.shape)
        return pool_tokens(tower, outputs.replace(last_hidden_state=same))

    module = model.module.clone(vision_pool_tokens=pooled_for_all)
    images = pixels(3)
    patches = jax.jit(lambda p: module.apply({"params": p}, images, method="encode_patches"))(
        params
    )
    whole = np.asarray(run(model, params, images, method="encode_image"))
    expected = np.broadcast_to(whole[:, None, None], (3, 2, 2, 16))
    np.testing.assert_allclose(patches, expected, atol=1e-6)
    assert np.abs(whole - whole[0]).max() > 0.01, "pictures can be told apart"


@every_tower
def test_patches_are_those_of_whole_layers(name):
    """Against the tower run as transformers does, outside of `running`."""
    model, params = model_of(name)
    images = pixels(3)

    def plain(module, images):
        with jax.numpy_rank_promotion("allow"):
            outputs = module.vision_model(module._normalised_pixels(images))
            tokens = module.vision_pool_tokens(module.vision_model, outputs)[:, 1:]
            return module.visual_projection(tokens).reshape(3, 2, 2, 16)

    expected = run(model, params, images, method=plain)
    expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    patches = run(model, params, images, method="encode_patches")
    assert patches.shape == (3, 2, 2, 16) and patches.dtype == jnp.float32
    np.testing.assert_allclose(patches, expected, atol=1e-6)
    assert np.ptp(np.asarray(patches).reshape(3, 4, 16), axis=1).min() > 1e-3, "patches differ"


@every_tower
@pytest.mark.parametrize("place", [(0, 2), (1, 2), (2, 1)])
def test_patches_lie_as_in_the_picture(name, place):
    model, params = model_of(name, num_hidden_layers=1, image_size=48)
    # Attention that hardly mixes: what a patch says is mostly its own.
    quiet = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * (0.1 if "value" in str(path) or "v_proj" in str(path) else 1),
        params,
    )
    row, column = (16 * number for number in place)
    images = np.full((2, 48, 48, 3), 90, np.uint8)
    images[1, row : row + 16, column : column + 16] = (200, 30, 30)
    patches = np.asarray(run(model, quiet, images, method="encode_patches"))
    moved = np.abs(patches[1] - patches[0]).sum(-1)
    assert patches.shape == (2, 3, 3, 16)
    assert np.unravel_index(moved.argmax(), moved.shape) == place
    assert np.sort(moved, axis=None)[-2] < moved.max() / 2


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
