import io
import time

import numpy as np
import pytest
from PIL import Image

from data_prep import images
from data_prep.images import ImageFilters, difference_hash, prepare_image
from tests.pictures import png_bomb


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(prepared):
    image = Image.open(io.BytesIO(prepared.jpeg))
    assert image.format == "JPEG"
    return image


def halves(width=40, height=20):
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def assert_colour(image, place, colour):
    assert np.abs(np.subtract(image.getpixel(place), colour)).max() <= 12


def test_a_small_upright_rgb_jpeg_keeps_its_bytes():
    data = encoded(halves(), "JPEG", quality=75)
    assert prepare_image(data, ImageFilters(20)).jpeg == data


@pytest.mark.parametrize("shape", [(600, 300), (300, 600), (300, 300)])
def test_larger_images_shrink_to_the_shorter_side(shape):
    image = opened(prepare_image(encoded(halves(*shape), "JPEG"), ImageFilters(100)))
    assert image.size == tuple(side // 3 for side in shape)
    assert_colour(image, (5, 50), (255, 0, 0))


def test_a_long_strip_keeps_its_proportions():
    assert opened(prepare_image(encoded(halves(2000, 31)), ImageFilters(30))).size == (1935, 30)


def test_images_never_grow():
    assert opened(prepare_image(encoded(halves(40, 20)), ImageFilters(256))).size == (40, 20)


def test_exif_rotation_is_carried_out():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image = opened(prepare_image(encoded(halves(), "JPEG", exif=exif), ImageFilters(256)))
    assert image.size == (20, 40)
    assert_colour(image, (10, 5), (255, 0, 0))
    assert_colour(image, (10, 35), (0, 0, 255))
    assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("CMYK", "JPEG"), ("L", "JPEG"), ("P", "PNG"), ("1", "PNG"), ("L", "PNG"), ("RGB", "WEBP")],
)
def test_every_mode_becomes_rgb(mode, kind):
    source = halves().convert(mode)
    image = opened(prepare_image(encoded(source, kind), ImageFilters(256)))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, int) - np.asarray(source.convert("RGB"), int)).mean() < 6


def test_transparency_becomes_white():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert_colour(opened(prepare_image(encoded(clear))), (4, 4), (255, 255, 255))
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert_colour(opened(prepare_image(encoded(palette, transparency=0))), (4, 4), (255, 255, 255))


def test_sixteen_bits_become_eight():
    deep = Image.fromarray(np.full((8, 8), 0x80FF, np.uint16))
    assert_colour(opened(prepare_image(encoded(deep))), (4, 4), (0x80,) * 3)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert_colour(opened(prepare_image(data)), (4, 4), (255, 0, 0))


def test_bad_data_gives_a_reason(monkeypatch):
    jpeg = encoded(halves(200, 100), "JPEG")
    assert prepare_image(b"") == "not an image"
    assert prepare_image(b"<html>404</html>") == "not an image"
    assert prepare_image(jpeg[: len(jpeg) // 2]) == "broken image"
    monkeypatch.setattr(images, "MAX_BYTES", len(jpeg) - 1)
    assert prepare_image(jpeg) == "too many bytes"


def test_a_bomb_is_refused_from_its_header(monkeypatch):
    def refuse(*args):
        raise AssertionError("decoded")

    data = encoded(Image.new("1", (8000, 7000)))  # 56 megapixels in a few kilobytes
    assert len(data) < 20_000
    monkeypatch.setattr(images, "_prepare", refuse)
    assert prepare_image(data) == "too many pixels"
    # And beyond the limit of PIL's own, 400 megapixels in 48 kilobytes.
    bomb = png_bomb()
    assert len(bomb) < 50_000
    began = time.perf_counter()
    assert prepare_image(bomb) == "too many pixels"
    assert time.perf_counter() - began < 0.05


def test_the_hash_survives_resizing_and_tells_pictures_apart():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8))
    image = coarse.resize((300, 300), Image.Resampling.BICUBIC)
    other = image.transpose(Image.Transpose.ROTATE_90)
    first = difference_hash(image)
    assert -(2**63) <= first < 2**63
    assert (first ^ difference_hash(image.resize((90, 90)))).bit_count() <= 4
    assert ((first ^ difference_hash(other)) & (2**64 - 1)).bit_count() > 16
    rising = Image.fromarray(np.tile(np.arange(0, 252, 28, dtype=np.uint8), (8, 1)))
    assert difference_hash(rising) == -1  # all 64 bits
    assert difference_hash(rising.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0
