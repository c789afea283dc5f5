import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from clip_italian.data import augment
from tests.data.conftest import jpeg, smooth_image


def draws(uniforms=None, may_flip=False, **changes):
    """Parameters of one image; by default those in the middle of every range, probabilities off."""
    middle = np.full((1, augment.NUM_UNIFORMS), 0.5)
    middle[:, [2, 10, 19, 20]] = 0.9
    made = augment.draw(middle if uniforms is None else uniforms, may_flip)
    return augment.Draws(**{**{k: v[0] for k, v in made._asdict().items()}, **changes})


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def shift(x, y):
    """Warp whose output shows what lies (x, y) of the frame's half side further."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float32)


def random_images(count):
    rng = np.random.default_rng(0)
    for number in range(count):
        low, high = sorted(rng.integers(0, 257, 2))
        image = rng.integers(low, max(high, low + 1), (16, 20, 3)).astype(np.uint8)
        yield np.minimum(image, number) if number < 8 else image  # the first are nearly flat


def test_middle_draws_are_the_identity():
    np.testing.assert_allclose(draws().warp, np.eye(3), atol=1e-6)
    assert (draws().hue, draws().flip, draws().equalize) == (0, False, False)
    np.testing.assert_allclose(draws().crop, [0.5, 0.5])


@pytest.mark.parametrize("side", [24, 32, 48, 60])
def test_identity_warp_is_the_plain_resize(side):
    square = smooth_image(1, side, side)
    warped = augment.warp_square(tf.constant(square), np.eye(3, dtype=np.float32), 32).numpy()
    plain = tf.image.resize(square, [32, 32], "bilinear").numpy()
    # The warp rounds down: never above, less than one level below (1e-2 for float32).
    assert (plain - warped > -1e-2).all() and (plain - warped < 1 + 1e-2).all()


def test_a_shift_moves_a_pixel_and_fills_with_grey():
    square = np.zeros((8, 8, 3), np.uint8)
    square[2, 5] = 200
    # A quarter of the frame's half side of 4 pixels: the output shows one pixel further right.
    warped = augment.warp_square(tf.constant(square), shift(0.25, 0), 8).numpy()
    assert warped[2, 4].tolist() == [200] * 3
    assert warped[2, 5].tolist() == [0] * 3
    warped = augment.warp_square(tf.constant(square), shift(1, 0), 8).numpy()
    assert warped[2, 1].tolist() == [200] * 3
    assert np.unique(warped[:, 5:]).tolist() == [127]


def test_affine_turns_clockwise_scales_and_shifts():
    quarter = augment._affine(
        np.array([np.pi / 2]), np.array([[0.1, -0.2]]), np.array([0.5]), np.zeros((1, 2))
    )[0]
    # The right edge's middle (1, 0) turns to the bottom (0, 1), shrinks to (0, 0.5) and moves by
    # a tenth and a fifth of the frame, which is 2 wide.
    np.testing.assert_allclose(quarter @ [1, 0, 1], [0.2, 0.5 - 0.4, 1], atol=1e-12)
    sheared = augment._affine(
        np.zeros(1), np.zeros((1, 2)), np.ones(1), np.array([[np.pi / 4, 0]])
    )[0]
    np.testing.assert_allclose(sheared @ [0, 1, 1], [1, 1, 1], atol=1e-12)


def test_a_known_rotation_moves_a_known_pixel():
    square = np.zeros((9, 9, 3), np.uint8)
    square[4, 7] = 255  # right of the centre
    affine = augment._affine(np.array([np.pi / 2]), np.zeros((1, 2)), np.ones(1), np.zeros((1, 2)))
    warp = np.linalg.inv(affine[0]).astype(np.float32)
    warped = augment.warp_square(tf.constant(square), warp, 9).numpy()[..., 0]
    assert np.argwhere(warped > 200).tolist() == [[7, 4]]  # below the centre


def test_perspective_shows_the_frame_between_the_moved_corners():
    uniforms = np.array([[1.0, 0.5, 0, 0, 0, 0, 0, 0]])
    on, off = augment._perspective(np.repeat(uniforms, 2, 0), np.array([True, False]))
    x, y, w = on @ [-0.7, -0.85, 1]  # the top left corner went in by 0.3 in x and 0.15 in y
    np.testing.assert_allclose([x / w, y / w], [-1, -1], atol=1e-9)
    for corner in ([1, -1], [1, 1], [-1, 1]):
        x, y, w = on @ [*corner, 1]
        np.testing.assert_allclose([x / w, y / w], corner, atol=1e-9)
    np.testing.assert_array_equal(off, np.eye(3))


def test_draws_reach_their_ranges_and_no_further():
    rng = np.random.default_rng(0)
    made = augment.draw(rng.random((20_000, augment.NUM_UNIFORMS)), flip=True)
    assert -0.1 <= made.hue.min() < -0.099 and 0.099 < made.hue.max() <= 0.1
    assert 0.5 <= made.area.min() < 0.501 and 0.999 < made.area.max() <= 1
    np.testing.assert_allclose([made.aspect.min(), made.aspect.max()], [3 / 4, 4 / 3], rtol=1e-3)
    for name, share in {"flip": 0.5, "autocontrast": 0.3, "equalize": 0.3}.items():
        assert abs(getattr(made, name).mean() - share) < 0.015, name
    perspective = np.abs(made.warp[:, 2, :2]).max(1) > 1e-6
    assert abs(perspective.mean() - 0.3) < 0.015
    # Without perspective the warp is F · A⁻¹, so that |det A| = scale² (shears: see below).
    affine = np.linalg.inv(made.warp[~perspective].astype(np.float64))
    moved = affine[:, :2, 2]
    assert np.abs(moved).max() <= 0.2 + 1e-6 and np.abs(moved).max() > 0.199
    scale = np.sqrt(np.abs(np.linalg.det(affine)))
    np.testing.assert_allclose([scale.min(), scale.max()], [0.8, 1.2], atol=1e-3)
    assert not augment.draw(rng.random((50, augment.NUM_UNIFORMS)), flip=False).flip.any()


def test_autocontrast_is_that_of_pil_within_one_level():
    for image in random_images(60):
        ours = augment.autocontrast(tf.constant(image)).numpy().astype(int)
        pil = np.asarray(ImageOps.autocontrast(Image.fromarray(image)))
        assert np.abs(ours - pil).max() <= 1


def test_equalize_is_that_of_pil():
    for image in random_images(60):
        ours = augment.equalize(tf.constant(image)).numpy()
        np.testing.assert_array_equal(ours, np.asarray(ImageOps.equalize(Image.fromarray(image))))


def test_paper_with_middle_draws_is_the_central_square_resized():
    data = jpeg(smooth_image(2, 48, 80))
    paper = augment.paper(tf.constant(data), draws(), 32).numpy().astype(int)
    square = decoded(data)[:, 16:64]
    plain = tf.image.resize(square, [32, 32], "bilinear").numpy()
    # All but the outermost pixels, whose colour a JPEG window knows less well than the whole.
    assert np.abs(paper - plain)[1:-1, 1:-1].max() < 1


def test_colour_steps_come_after_the_warp_in_order():
    data, hue = jpeg(smooth_image(3, 32, 32)), np.float32(0.07)
    plain = augment.paper(tf.constant(data), draws(), 32)
    hued = tf.image.adjust_hue(plain, hue)
    both = augment.equalize(augment.autocontrast(hued))
    made = augment.paper(tf.constant(data), draws(hue=hue, autocontrast=True, equalize=True), 32)
    np.testing.assert_array_equal(made, both)
    assert np.abs(hued.numpy().astype(int) - plain.numpy()).max() > 20


@pytest.mark.parametrize("policy", ["paper", "light", "none"])
def test_flip_mirrors(policy):
    data = jpeg(smooth_image(4, 32, 32))
    apply = augment.POLICIES[policy]
    mirror = np.diag([-1, 1, 1]).astype(np.float32) if policy == "paper" else np.eye(3)
    full = {"area": np.float32(1), "aspect": np.float32(1)}
    plain = apply(tf.constant(data), draws(**full), 32).numpy().astype(int)
    mirrored = apply(
        tf.constant(data), draws(flip=np.True_, warp=mirror.astype(np.float32), **full), 32
    )
    assert np.abs(mirrored.numpy()[:, ::-1] - plain).max() <= 1
    assert np.abs(mirrored.numpy() - plain).max() > 20


def test_light_crops_the_window_drawn():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 200
    crop = {"area": np.float32(0.5), "aspect": np.float32(1)}  # a square of 40 × 40
    left, right = (
        augment.light(tf.constant(jpeg(image)), draws(crop=np.float32([0, x]), **crop), 20).numpy()
        for x in (0, 0.99999)
    )
    assert left.mean() < 3 and right.mean() > 197


@pytest.mark.parametrize(("height", "width"), [(256, 341), (333, 256), (100, 64)])
def test_centre_crop_is_close_to_pil_bicubic(height, width):
    pixels = smooth_image(5, height, width)
    ours = augment.centre_crop(tf.constant(jpeg(pixels)), 64).numpy().astype(int)
    side = min(height, width)
    image = Image.fromarray(decoded(jpeg(pixels)))
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    pil = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(ours - pil).mean() < 1.0 and np.abs(ours - pil).max() <= 8


@pytest.mark.parametrize("policy", ["paper", "light"])
@pytest.mark.parametrize("side", [64, 256])
def test_fine_stripes_become_grey_not_waves(policy, side):
    stripes = np.zeros((side, side, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = draws(area=np.float32(1), aspect=np.float32(1))
    made = augment.POLICIES[policy](tf.constant(jpeg(stripes)), crop, 32).numpy()[2:-2, 2:-2]
    assert made.std() < 20  # a bilinear sampling without the low-pass has more than 100


@pytest.mark.parametrize("policy", ["paper", "light", "none"])
@pytest.mark.parametrize("side", [8, 31, 32, 33, 70])
def test_any_record_size_gives_the_image_size(policy, side):
    rng = np.random.default_rng(side)
    data = tf.constant(jpeg(smooth_image(6, side, side + 5)))
    one = draws(rng.random((1, augment.NUM_UNIFORMS)), may_flip=True)
    image = augment.POLICIES[policy](data, one, 32)
    assert image.dtype == tf.uint8 and image.shape == (32, 32, 3)
    np.testing.assert_array_equal(image, augment.POLICIES[policy](data, one, 32))


def test_grey_jpegs_become_rgb():
    data = jpeg(np.full((32, 32), 90))
    image = augment.centre_crop(tf.constant(data), 16).numpy()
    assert image.shape == (16, 16, 3) and np.abs(image.astype(int) - 90).max() <= 1
