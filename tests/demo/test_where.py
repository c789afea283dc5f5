import matplotlib
import numpy as np
import pytest

from clip_italian.data.pixels import cut_square
from clip_italian.demo.where import (
    COLORS,
    occlusion,
    on_whole_picture,
    overlay,
    patch_shares,
    upsample,
)

RED, GREY = (220, 20, 20), (100, 100, 100)
TEXT = np.array([1.0, 0.0], np.float32)  # "red"
LOWEST, HIGHEST = (
    np.round(np.array(matplotlib.colormaps[COLORS](x)[:3]) * 255) for x in (0.0, 1.0)
)


def redness(pixels):
    """A model that knows but one thing: uint8 [n, height, width, 3] → [n, 2], L2-normalised."""
    red = (pixels[..., 0].astype(np.float32) - pixels[..., 1:].mean(-1)).mean((1, 2)) / 255
    embeds = np.stack([red, np.full_like(red, 0.1)], axis=-1)
    return embeds / np.linalg.norm(embeds, axis=-1, keepdims=True)


def picture_with_red(row, column, side=64):
    pixels = np.full((side, side, 3), GREY, np.uint8)
    part = side // 4
    pixels[row * part : (row + 1) * part, column * part : (column + 1) * part] = RED
    return pixels


def mean_red(pixels):
    return pixels[..., :1].mean(axis=(1, 2))


def highest(heat):
    return np.unravel_index(heat.argmax(), heat.shape)


@pytest.mark.parametrize("place", [(0, 0), (1, 2), (2, 1), (3, 3), (0, 3)])
def test_both_methods_find_the_one_red_patch(place):
    pixels = picture_with_red(*place)
    patches = pixels.reshape(4, 16, 4, 16, 3).swapaxes(1, 2).reshape(16, 16, 16, 3)
    heat = patch_shares(redness(patches).reshape(4, 4, 2), TEXT)
    assert heat.shape == (4, 4) and highest(heat) == place
    heat = occlusion(redness, pixels, TEXT, cells=4, window=1)
    assert heat.shape == (4, 4) and highest(heat) == place
    assert np.count_nonzero(heat > 0) == 1
    heat = occlusion(redness, pixels, TEXT)
    assert heat.shape == (8, 8)
    row, column = highest(heat)
    assert (row // 2, column // 2) == place


def test_patch_shares_by_hand():
    patches = np.array([[[1, 0], [0, 1]], [[0.6, 0.8], [-1, 0]], [[0, -1], [0.8, -0.6]]])
    heat = patch_shares(patches, np.array([0.6, 0.8]))
    np.testing.assert_allclose(heat, [[0.6, 0.8], [1.0, -0.6], [-0.8, 0.0]], atol=1e-6)
    assert heat.dtype == np.float32 and heat.shape == (3, 2)


def test_occlusion_by_hand():
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2, :2] = 200  # the mean is 50
    one = np.ones(1)
    # Red falls from 50 to 12.5 without the bright cell and rises to 62.5 without a dark one.
    heat = occlusion(mean_red, pixels, one, cells=2, window=1)
    np.testing.assert_allclose(heat, [[37.5, -12.5], [-12.5, -12.5]])
    # Nine windows lose 37.5 25 -12.5 / 25 0 -25 / -12.5 -25 -12.5, each cell is under four.
    heat = occlusion(mean_red, pixels, one, cells=2, window=2)
    np.testing.assert_allclose(heat, [[21.875, -3.125], [-3.125, -15.625]])
    assert heat.dtype == np.float32


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 33), (9, 8)])
def test_each_pixel_is_covered_as_often_and_the_cost_is_as_stated(height, width):
    pixels = np.random.default_rng(0).integers(0, 200, (height, width, 3)).astype(np.uint8)
    pixels[0, 0] = 255
    given, before = [], pixels.copy()

    def encode(pictures):
        given.append(pictures)
        return np.ones((len(pictures), 1), np.float32)

    heat = occlusion(encode, pixels, np.ones(1))
    assert [len(pictures) for pictures in given] == [82]
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(given[0][0], pixels)
    colour = pixels.mean((0, 1)).round()
    painted = (given[0][1:] == colour).all(-1) & (pixels != colour).any(-1)
    times = painted.sum(0)[(pixels != colour).any(-1)]
    assert times.min() == times.max() == 4
    np.testing.assert_array_equal(heat, np.zeros((8, 8)))


@pytest.mark.parametrize("side", [1, 3])
def test_a_picture_smaller_than_the_cells(side):
    pixels = np.full((side, side, 3), RED, np.uint8)
    np.testing.assert_array_equal(occlusion(redness, pixels, TEXT), np.zeros((8, 8)))


@pytest.mark.parametrize("wrong", [{"cells": 0}, {"window": 0}])
def test_windows_must_be(wrong):
    with pytest.raises(ValueError, match="at least 1, found"):
        occlusion(redness, picture_with_red(0, 0), TEXT, **wrong)


def test_upsampling_is_linear_between_centres_and_level_beyond():
    np.testing.assert_allclose(
        upsample(np.array([[0.0, 8.0]]), 2, 8), [[0, 0, 1, 3, 5, 7, 8, 8]] * 2, atol=1e-6
    )
    assert upsample(np.array([[3.0]]), 2, 3).tolist() == [[3] * 3] * 2
    assert upsample(np.eye(2), 1, 1).tolist() == [[0.5]]
    heat = np.zeros((4, 4))
    heat[1, 2] = 1
    large = upsample(heat, 64, 48)
    assert large.shape == (64, 48) and large.dtype == np.float32
    assert large.min() == 0 and large.max() == pytest.approx(31 / 32 * 23 / 24)
    row, column = highest(large)
    assert abs(row + 0.5 - 24) < 1 and abs(column + 0.5 - 30) < 1


@pytest.mark.parametrize(("height", "width"), [(6, 6), (6, 13), (13, 6), (1, 4), (1, 1)])
def test_heat_lies_on_the_square_that_the_model_sees(height, width):
    numbers = np.arange(height * width * 3).reshape(height, width, 3)
    heat = np.arange(4.0).reshape(2, 2)
    whole = on_whole_picture(heat, height, width)
    side = min(height, width)
    assert whole.shape == (height, width) and whole.dtype == np.float32
    seen = np.isin(numbers, cut_square(numbers))[..., 0]
    np.testing.assert_array_equal(np.isfinite(whole), seen)
    np.testing.assert_array_equal(whole[seen].reshape(side, side), upsample(heat, side, side))


def test_colours_take_the_heats_own_range():
    picture = np.full((1, 3, 3), 80, np.uint8)
    heat = np.array([[-0.2, 0.1, 0.4]])
    middle = np.round(np.array(matplotlib.colormaps[COLORS](0.5)[:3]) * 255)
    full = overlay(picture, heat, 1)
    assert full.dtype == np.uint8
    np.testing.assert_allclose(full[0], [LOWEST, middle, HIGHEST], atol=2)
    np.testing.assert_array_equal(overlay(picture, 10 * heat + 3, 1), full)
    half = overlay(picture, heat, 0.5)
    np.testing.assert_allclose(half[0], [(80 + c) / 2 for c in (LOWEST, middle, HIGHEST)], atol=2)
    assert HIGHEST.sum() > middle.sum() > LOWEST.sum(), "bright is hot"


def test_the_picture_stays_at_opacity_0_and_is_not_written_to():
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    before = picture.copy()
    heat = on_whole_picture(np.eye(2), 5, 7)
    np.testing.assert_array_equal(overlay(picture, heat, 0), before)
    overlay(picture, heat, 1)
    np.testing.assert_array_equal(picture, before)


def test_what_the_model_did_not_see_is_darkened():
    picture = np.full((2, 4, 3), 100, np.uint8)
    heat = on_whole_picture(np.array([[0.0, 1.0]]), 2, 4)
    for opacity, expected in ((1, 50), (0.5, 75), (0.1, 95)):
        found = overlay(picture, heat, opacity)
        assert (found[:, [0, 3]] == expected).all()
    np.testing.assert_array_equal(overlay(picture, heat, 1)[0, 1:3], [LOWEST, HIGHEST])
    assert (overlay(picture, np.full((2, 4), np.nan), 1) == 50).all(), "nothing seen at all"


@pytest.mark.parametrize("value", [0.0, 0.3, -5.0])
@pytest.mark.parametrize("shape", [(3, 2), (1, 1)])
def test_flat_heat_has_the_lowest_colour(value, shape):
    found = overlay(np.zeros((*shape, 3), np.uint8), np.full(shape, value), 1)
    np.testing.assert_array_equal(found, np.broadcast_to(LOWEST, (*shape, 3)))


def test_an_overlay_that_does_not_fit_is_refused():
    picture = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(ValueError, match="does not lie on a picture"):
        overlay(picture, np.zeros((3, 2)), 0.5)
    for opacity in (-0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match="opacity must be from 0 to 1"):
            overlay(picture, np.zeros((2, 3)), opacity)
