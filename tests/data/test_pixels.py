import io
import resource
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from clip_italian.data import augment, pixels
from tests.data.conftest import jpeg, smooth_image
from tests.pictures import png_bomb


def shift(x, y):
    """Warp whose output shows what lies (x, y) of the frame's half side further."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float32)


def random_images(count):
    rng = np.random.default_rng(0)
    for number in range(count):
        low, high = sorted(rng.integers(0, 257, 2))
        image = rng.integers(low, max(high, low + 1), (16, 20, 3)).astype(np.uint8)
        yield np.minimum(image, number) if number < 8 else image  # the first are nearly flat


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "JPEG"), ("L", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("RGB", "WEBP")],
)
def test_decoding_is_that_of_pil(mode, kind):
    data = encoded(Image.fromarray(smooth_image(1, 45, 70)).convert(mode), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(pixels.decode(data, 1000), expected)


def test_only_large_jpegs_are_decoded_at_reduced_size():
    image = Image.fromarray(smooth_image(2, 64, 101))
    data = encoded(image, "JPEG", quality=95, progressive=True, comment=b"x" * 300)
    assert pixels.jpeg_shape(data) == (64, 101)
    shapes = {least: pixels.decode(data, least).shape[:2] for least in (33, 32, 16, 9, 8, 1)}
    assert shapes == {
        33: (64, 101), 32: (32, 51), 16: (16, 26), 9: (16, 26), 8: (8, 13), 1: (8, 13),
    }  # fmt: skip
    # A window of a quarter of the picture's sides is needed at 16 pixels.
    assert pixels.decode(data, 16, lambda shape: (shape[0] // 4, shape[1] // 4)).shape[0] == 64
    half = np.asarray(image.reduce(2)).astype(int)
    assert np.abs(pixels.decode(data, 32)[:32, :50] - half[:32, :50]).mean() < 1.5
    png = encoded(image, "PNG")
    assert pixels.jpeg_shape(png) is None and pixels.decode(png, 1).shape == (64, 101, 3)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\xff\xd8\xffno jpeg at all", b"GIF89a"])
def test_what_is_no_picture_is_an_error(data):
    with pytest.raises(pixels.ImageError):
        pixels.decode(data, 8)


def test_a_bomb_is_refused_from_its_header(monkeypatch):
    bombs = [png_bomb(), png_bomb(8_000, 7_000)]  # beyond PIL's own limit, and below it
    jpeg_bomb = bytearray(jpeg(smooth_image(0)))
    place = jpeg_bomb.index(b"\xff\xc0") + 5
    jpeg_bomb[place : place + 4] = b"\x1f\xff\x1f\xff"  # height and width: 67 megapixels
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in (*bombs, bytes(jpeg_bomb)):
        began = time.perf_counter()
        with pytest.raises(pixels.ImageError, match="pixels"):
            pixels.decode(data, 32)
        assert time.perf_counter() - began < 0.05
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
    monkeypatch.setattr(pixels, "MAX_IMAGE_BYTES", len(bombs[0]) - 1)
    with pytest.raises(pixels.ImageError, match="at most .* are read"):
        pixels.decode(bombs[0], 32)


def test_a_cut_off_picture_is_an_error():
    data = jpeg(smooth_image(2))
    for length in range(1, len(data) - 2, 7):
        with pytest.raises(pixels.ImageError):
            pixels.decode(data[:length], 8)


def test_the_turn_that_a_camera_noted_is_not_made():
    image = Image.fromarray(smooth_image(2, 32, 48))
    exif = image.getexif()
    exif[0x0112] = 6
    assert pixels.decode(encoded(image, "JPEG", exif=exif), 100).shape == (32, 48, 3)


def test_windows_are_cut_where_they_are_placed():
    picture = np.arange(5 * 8 * 3, dtype=np.uint8).reshape(5, 8, 3)
    np.testing.assert_array_equal(pixels.cut_square(picture), picture[:, 1:6])
    np.testing.assert_array_equal(pixels.cut_square(picture, (0, 0)), picture[:, :5])
    np.testing.assert_array_equal(pixels.cut_square(picture, (0.9, 0.999)), picture[:, 3:])
    np.testing.assert_array_equal(pixels.cut(picture, (2, 3), (0.5, 0.5)), picture[2:4, 3:6])
    last = np.float32(1 - 2**-26)  # rounds to 1
    np.testing.assert_array_equal(pixels.cut(picture, (2, 3), (last, last)), picture[3:, 5:])


@pytest.mark.parametrize("side", [24, 32, 48, 64, 100])
def test_resizes_are_close_to_pil(side):
    image = smooth_image(3, side, side)
    plain = Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(pixels.resize(image, 32) - np.asarray(plain).astype(int)).mean() < 1.5
    bicubic = Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels.resize_bicubic(image, 32), np.asarray(bicubic))


@pytest.mark.parametrize("side", [24, 32, 48, 60])
def test_identity_warp_is_the_plain_resize(side):
    square = smooth_image(1, side, side)
    warped = pixels.warp_square(square, np.eye(3, dtype=np.float32), 32).astype(int)
    assert np.abs(warped - pixels.resize(square, 32)).max() <= 1


def test_a_shift_moves_a_pixel_and_fills_with_grey():
    square = np.zeros((8, 8, 3), np.uint8)
    square[2, 5] = 200
    # A quarter of the frame's half side of 4 pixels: the output shows one pixel further right.
    warped = pixels.warp_square(square, shift(0.25, 0), 8)
    assert warped[2, 4].tolist() == [200] * 3
    assert warped[2, 5].tolist() == [0] * 3
    warped = pixels.warp_square(square, shift(1, 0), 8)
    assert warped[2, 1].tolist() == [200] * 3
    assert np.unique(warped[:, 5:]).tolist() == [127]


def test_a_known_rotation_moves_a_known_pixel():
    square = np.zeros((9, 9, 3), np.uint8)
    square[4, 7] = 255  # right of the centre
    affine = augment._affine(np.array([np.pi / 2]), np.zeros((1, 2)), np.ones(1), np.zeros((1, 2)))
    warp = np.linalg.inv(affine[0]).astype(np.float32)
    warped = pixels.warp_square(square, warp, 9)[..., 0]
    assert np.argwhere(warped > 200).tolist() == [[7, 4]]  # below the centre


def test_hue_turns_round_the_circle():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [90, 90, 90]]], np.uint8)
    turned = pixels.shift_hue(colours, 1 / 3).astype(int)
    assert np.abs(turned - [[[0, 255, 0], [0, 0, 255], [90, 90, 90]]]).max() <= 3
    back = pixels.shift_hue(colours, -2 / 3).astype(int)
    np.testing.assert_array_equal(back, turned)
    assert pixels.shift_hue(colours, 0.001) is colours  # less than one of 256 steps


def test_hue_is_that_of_pil_within_rounding():
    image = smooth_image(4, 32, 32)
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 0] += 18
    pil = np.asarray(Image.frombytes("HSV", (32, 32), hsv.tobytes()).convert("RGB")).astype(int)
    ours = pixels.shift_hue(image, 18 / 256)
    assert np.abs(ours - pil).mean() < 2 and np.abs(ours - pil).max() <= 12


@pytest.mark.parametrize(
    ("autocontrast", "equalize"), [(True, False), (False, True), (True, True), (False, False)]
)
def test_stretch_is_what_pil_does(autocontrast, equalize):
    for image in random_images(60):
        expected = Image.fromarray(image)
        if autocontrast:
            expected = ImageOps.autocontrast(expected)
        if equalize:
            expected = ImageOps.equalize(expected)
        ours = pixels.stretch(image, autocontrast, equalize)
        np.testing.assert_array_equal(ours, np.asarray(expected))
