"""One picture as found → checked, with its thumbnail; or the reason why it cannot be used."""

import dataclasses
import hashlib
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from clip_italian.evaluation.folders import on_white

# A few kilobytes can hold 400 megapixels; both are refused before anything is decoded.
MAX_BYTES, MAX_PIXELS = 20 * 1000 * 1000, 50 * 1000 * 1000
SIDE, LONGEST = 256, 1024  # pixels: most of a thumbnail's shorter side, and of its longer one
_FORMATS = ("JPEG", "PNG", "WEBP")
_BEGIN = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")
_ORIENTATION = 0x0112  # EXIF tag


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture that decodes whole.

    Attributes:
      data: what to show the model: the file as found, but upright and without transparency.
      thumbnail: JPEG, RGB.
      sha256: hex, of the file as found.
    """

    data: bytes
    thumbnail: bytes
    sha256: str


def check(data: bytes) -> Picture | str:
    """Decodes a picture whole and makes its thumbnail; never raises on bad data.

    A photo that its EXIF data says to turn is turned, transparent parts become white, of an
    animation the first frame is taken.

    Args:
      data: contents of a file.

    Returns:
      The picture, or in a few words why there is none.
    """
    if not data:
        return "empty file"
    if len(data) > MAX_BYTES:
        return "over 20 MB"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata and of sizes checked below
        try:
            header = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.DecompressionBombError:  # Pillow's own limit, 179 megapixels
            return "over 50 megapixels"
        except Exception:  # parsers of hostile bytes raise nearly anything
            return "damaged picture" if data.startswith(_BEGIN) else "not a JPEG, PNG or WebP"
        if header.width * header.height > MAX_PIXELS:
            return "over 50 megapixels"
        try:
            shown = _shown(data, header)
            return Picture(shown, _thumbnail(shown), hashlib.sha256(data).hexdigest())
        except Exception:
            return "damaged picture"


def _shown(data: bytes, header: Image.Image) -> bytes:
    """The file, or an equal one that is upright and opaque."""
    if header.getexif().get(_ORIENTATION, 1) != 1:
        turned, file = ImageOps.exif_transpose(header), io.BytesIO()
        if turned.has_transparency_data:
            turned.save(file, "PNG", compress_level=1)
        else:
            turned.convert("RGB").save(file, "JPEG", quality=95, subsampling=0)
        data = file.getvalue()
    return on_white(data) if header.format != "JPEG" else data


def _thumbnail(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    image.draft("RGB", (2 * SIDE, 2 * SIDE))  # a large JPEG is read whole, but at reduced size
    image.load()
    if image.mode.startswith("I;16"):  # which Pillow does not convert
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    scale = min(SIDE / min(image.size), LONGEST / max(image.size))
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.HAMMING)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
