"""Uploads: what is read, and what is refused with which line."""

import io
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from clip_italian.demo.pictures import MAX_BYTES, SIDE, PictureError, decode, read_upload
from clip_italian.demo.words import ENGLISH, ITALIAN
from tests.pictures import png_bomb


def encoded(image, form="PNG", **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


RED = Image.new("RGB", (40, 20), "red")


MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "P", "RGBA", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
}


@pytest.mark.parametrize(("form", "mode"), [(f, mode) for f in MODES for mode in MODES[f]])
def test_pictures_of_all_kinds_are_read(tmp_path, form, mode):
    path = tmp_path / "wrong.name"
    image = RED.convert("L").convert("I;16") if mode == "I;16" else RED.convert(mode)
    path.write_bytes(encoded(image, form))
    picture = read_upload(path, ITALIAN)
    assert (picture.width, picture.height) == (40, 20)
    assert picture.open().mode == "RGB"
    if mode in ("RGB", "RGBA", "CMYK", "P"):
        red, green, blue = picture.open().getpixel((5, 5))
        assert red > 240 and green < 15 and blue < 15


def test_transparent_parts_become_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode(encoded(clear), ITALIAN).open().getpixel((1, 1)) == (255, 255, 255)


def test_photos_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by a quarter
    picture = decode(encoded(RED, "JPEG", exif=exif), ITALIAN)
    assert (picture.width, picture.height) == (20, 40)


def test_large_pictures_are_shrunk_and_small_ones_left():
    large = decode(encoded(Image.new("RGB", (3000, 1500)), "JPEG"), ITALIAN)
    assert (large.width, large.height) == (SIDE, SIDE // 2)
    tiny = decode(encoded(Image.new("RGB", (1, 1))), ITALIAN)
    assert (tiny.width, tiny.height) == (1, 1)


@pytest.mark.parametrize(
    ("size", "kept"),
    [((4000, 800), (1920, 384)), ((800, 4000), (384, 1920)), ((9000, 30), (3072, 10))],
)
def test_the_middle_of_a_panorama_stays_sharp(size, kept):
    """A model sees the middle square alone, and evaluation shrinks the shorter side to it."""
    picture = decode(encoded(Image.new("RGB", size), "JPEG"), ITALIAN)
    assert (picture.width, picture.height) == kept


def test_grey_of_16_bits_keeps_its_brightness():
    deep = Image.fromarray(np.full((20, 20), 77 << 8, np.uint16))
    assert decode(encoded(deep), ITALIAN).open().getpixel((5, 5)) == (77, 77, 77)


def test_a_picture_that_mentions_svg_is_taken():
    assert decode(encoded(RED, "JPEG", comment=b"made from <svg>"), ITALIAN).width == 40


def test_half_transparent_parts_are_mixed_with_white():
    half = Image.new("RGBA", (1600, 1600), (255, 0, 0, 128))
    red, green, blue = decode(encoded(half), ITALIAN).open().getpixel((700, 700))
    assert red == 255 and green == blue and abs(green - 127) <= 1


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode(data, ITALIAN).open().getpixel((3, 3)) == (255, 0, 0)


noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), "uint8"))
HOSTILE = {
    "empty": (b"", "empty_file"),
    "html": (b"<!DOCTYPE html><html><body>not here</body></html>", "no_image"),
    "svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "svg"),
    "gif": (encoded(RED, "GIF"), "no_image"),
    "tiff": (encoded(RED, "TIFF"), "no_image"),
    "pdf": (b"%PDF-1.7 ...", "no_image"),
    "cut jpeg": (encoded(noise, "JPEG")[:900], "broken"),
    "cut png": (encoded(noise)[:900], "broken"),
    "head alone": (encoded(noise, "JPEG")[:20], "no_image"),
    "pickle": (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00K\x01.", "no_image"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("words", [ITALIAN, ENGLISH], ids=lambda words: words.language)
def test_no_picture_is_refused_with_its_reason(tmp_path, name, words):
    data, reason = HOSTILE[name]
    path = tmp_path / "picture.jpg"  # the name says nothing
    path.write_bytes(data)
    with pytest.raises(PictureError) as refused:
        read_upload(path, words)
    assert str(refused.value) == getattr(words, reason)


def test_a_file_of_50_mb_is_refused_unread(tmp_path):
    path = tmp_path / "large.jpg"
    with path.open("wb") as file:
        file.truncate(50 * 1000 * 1000)
    tracemalloc.start()
    with pytest.raises(PictureError, match=r"50,0 MB.*5 MB"):
        read_upload(path, ITALIAN)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    path.write_bytes(encoded(RED, "JPEG") + b"\0" * (MAX_BYTES - 2000))
    assert read_upload(path, ITALIAN).width == 40


def test_an_upload_that_is_deleted_by_now_is_asked_for_again(tmp_path):
    with pytest.raises(PictureError, match="caricala di nuovo"):
        read_upload(tmp_path / "a.png", ITALIAN)


@pytest.mark.parametrize("side", [7_100, 20_000])
def test_an_image_bomb_is_refused_from_its_header(side):
    data = png_bomb(side, side)
    start = time.perf_counter()
    with pytest.raises(PictureError, match="megapixel"):
        decode(data, ITALIAN)
    assert time.perf_counter() - start < 1
