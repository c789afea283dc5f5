"""Uploaded pictures: what may be one is decoded once and turned upright, all else is refused."""

import dataclasses
import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from clip_italian.demo.words import Words

MAX_BYTES = 5 * 1000 * 1000  # of an upload
MAX_PIXELS = 50_000_000
# Pixels that are kept: a longest side for the page, unless the shorter one, of which a tower sees
# the middle square, would be less than towers take.
SIDE, SHORTEST, LONGEST = 768, 384, 3072
_FORMATS = ("JPEG", "PNG", "WEBP")
_HEAD = 1024  # bytes in which a text file shows what it is


class PictureError(ValueError):
    """An upload that cannot be used; says so in the words of the page."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture to work on.

    Attributes:
      data: PNG, upright, RGB, no side longer than `SIDE`; of a panorama no longer than `LONGEST`.
      width: pixels.
      height: pixels.
    """

    data: bytes
    width: int
    height: int

    def open(self) -> Image.Image:
        """As an RGB image."""
        return Image.open(io.BytesIO(self.data)).convert("RGB")


def read_upload(path: str | os.PathLike[str], words: Words) -> Picture:
    """A file → a picture. Its name and suffix are not looked at.

    Raises:
      PictureError: deleted since, too large, empty, no JPEG, PNG or WebP, too many pixels, or
        damaged.
    """
    try:
        size = os.path.getsize(path)
        if size > MAX_BYTES:
            raise PictureError(words.too_large.format(size=f"{words.number(size / 1e6, 1)} MB"))
        data = Path(path).read_bytes()
    except FileNotFoundError as error:  # on a page that was left open
        raise PictureError(words.upload_gone) from error
    return decode(data, words)


def decode(data: bytes, words: Words) -> Picture:
    """Encoded picture → the same upright, in RGB and no larger than needed; see `read_upload`.

    An animation gives its first frame; transparent parts become white.
    """
    if not data:
        raise PictureError(words.empty_file)
    try:
        with warnings.catch_warnings(action="ignore"):  # of Pillow, about sizes that we check
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureError(words.too_many_pixels.format(megapixels=">50", most=50)) from error
    except Exception as error:  # parsers of hostile bytes raise nearly anything
        svg = b"<svg" in data[:_HEAD].lower()
        raise PictureError(words.svg if svg else words.no_image) from error
    if image.width * image.height > MAX_PIXELS:
        megapixels = f"{image.width * image.height / 1e6:.0f}"
        raise PictureError(words.too_many_pixels.format(megapixels=megapixels, most=50))
    try:
        with warnings.catch_warnings(action="ignore"):
            image.draft("RGB", (SIDE, SIDE))  # a JPEG is decoded no larger than needed
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _picture(image)
    except Exception as error:
        raise PictureError(words.broken) from error


def _picture(image: Image.Image) -> Picture:
    """Makes no second copy of a large picture that it can do without."""
    if image.mode.startswith("I;16"):  # which Pillow converts to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = "RGBA" if image.has_transparency_data else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    longest, shortest = max(image.size), min(image.size)
    scale = min(max(SIDE / longest, SHORTEST / shortest), LONGEST / longest)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    if mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    return Picture(data.getvalue(), image.width, image.height)
