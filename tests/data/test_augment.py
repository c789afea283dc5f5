import io

import numpy as np
import pytest
from PIL import Image

from clip_italian.data import augment, pixels
from tests.data.conftest import jpeg, smooth_image


def draws(uniforms=None, may_flip=False, **changes):
    """Parameters of one image; by default those in the middle of every range, probabilities off."""
    middle = np.full((1, augment.NUM_UNIFORMS), 0.5)
    middle[:, [2, 10, 19, 20]] = 0.9
    made = augment.draw(middle if uniforms is None else uniforms, may_flip)
    return augment.Draws(**{**{k: v[0] for k, v in made._asdict().items()}, **changes})


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_middle_draws_are_the_identity():
    np.testing.assert_allclose(draws().warp, np.eye(3), atol=1e-6)
    assert (draws().hue, draws().flip, draws().equalize) == (0, False, False)
    np.testing.assert_allclose(draws().crop, [0.5, 0.5])


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


def test_paper_with_middle_draws_is_the_central_square_resized():
    data = jpeg(smooth_image(2, 48, 80))
    paper = augment.paper(data, draws(), 32).astype(int)
    assert np.abs(paper - pixels.resize(decoded(data)[:, 16:64], 32)).max() <= 1


def test_colour_steps_come_after_the_warp_in_order():
    data, hue = jpeg(smooth_image(3, 32, 32)), np.float32(0.07)
    plain = augment.paper(data, draws(), 32)
    hued = pixels.shift_hue(plain, 0.07)
    both = pixels.stretch(pixels.stretch(hued, True, False), False, True)
    made = augment.paper(data, draws(hue=hue, autocontrast=True, equalize=True), 32)
    np.testing.assert_array_equal(made, both)
    assert np.abs(hued.astype(int) - plain).max() > 20


@pytest.mark.parametrize("policy", ["paper", "light", "none"])
def test_flip_mirrors(policy):
    data = jpeg(smooth_image(4, 32, 32))
    apply = augment.POLICIES[policy]
    mirror = np.diag([-1, 1, 1]).astype(np.float32) if policy == "paper" else np.eye(3)
    full = {"area": np.float32(1), "aspect": np.float32(1)}
    plain = apply(data, draws(**full), 32).astype(int)
    mirrored = apply(data, draws(flip=np.True_, warp=mirror.astype(np.float32), **full), 32)
    assert np.abs(mirrored[:, ::-1] - plain).max() <= 1
    assert np.abs(mirrored - plain).max() > 20


def test_light_crops_the_window_drawn():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 200
    crop = {"area": np.float32(0.5), "aspect": np.float32(1)}  # a square of 40 × 40
    left, right = (
        augment.light(jpeg(image), draws(crop=np.float32([0, x]), **crop), 20) for x in (0, 0.99999)
    )
    assert left.mean() < 3 and right.mean() > 197


@pytest.mark.parametrize(("height", "width"), [(256, 341), (333, 256), (100, 64), (130, 150)])
def test_centre_crop_is_close_to_pil_bicubic(height, width):
    picture = smooth_image(5, height, width)
    ours = augment.centre_crop(jpeg(picture), 64).astype(int)
    side = min(height, width)
    image = Image.fromarray(decoded(jpeg(picture)))
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    pil = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(ours - pil).mean() < 1.0 and np.abs(ours - pil).max() <= 8
    if side < 4 * 64:  # not decoded at reduced size
        np.testing.assert_array_equal(ours, pil)


@pytest.mark.parametrize("policy", ["paper", "light"])
@pytest.mark.parametrize("side", [64, 256])
def test_fine_stripes_become_grey_not_waves(policy, side):
    stripes = np.zeros((side, side, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = draws(area=np.float32(1), aspect=np.float32(1))
    made = augment.POLICIES[policy](jpeg(stripes), crop, 32)[2:-2, 2:-2]
    assert made.std() < 20  # a bilinear sampling without the low-pass has more than 100


@pytest.mark.parametrize("policy", ["paper", "light", "none"])
@pytest.mark.parametrize("side", [8, 31, 32, 33, 70])
def test_any_record_size_gives_the_image_size(policy, side):
    rng = np.random.default_rng(side)
    data = jpeg(smooth_image(6, side, side + 5))
    one = draws(rng.random((1, augment.NUM_UNIFORMS)), may_flip=True)
    image = augment.POLICIES[policy](data, one, 32)
    assert image.dtype == np.uint8 and image.shape == (32, 32, 3)
    np.testing.assert_array_equal(image, augment.POLICIES[policy](data, one, 32))


def test_grey_jpegs_become_rgb():
    data = jpeg(np.full((32, 32), 90))
    image = augment.centre_crop(data, 16)
    assert image.shape == (16, 16, 3) and np.abs(image.astype(int) - 90).max() <= 1
