"""One image: bytes as found → JPEG bytes of a record, or the reason why not. Pure functions."""

import dataclasses
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

MAX_BYTES = 20 * 1000 * 1000
MAX_PIXELS = 50 * 1000 * 1000
_ORIENTATION = 0x0112  # EXIF tag


@dataclasses.dataclass(frozen=True)
class PreparedImage:
    """An image as a record holds it.

    Attributes:
      jpeg: RGB or grey JPEG bytes, upright, shorter side at most the size asked for.
      image_hash: perceptual hash, int64; near-equal pictures differ in few bits.
    """

    jpeg: bytes
    image_hash: int


def prepare_image(data: bytes, size: int = 256) -> PreparedImage | str:
    """Checks, turns upright, shrinks and encodes one image; never enlarges.

    A JPEG that is small enough, RGB and upright keeps its bytes; all else is encoded at quality
    90. Transparency becomes white. Of an animation the first frame is taken.

    Args:
      data: contents of an image file of any format that PIL reads.
      size: longest shorter side, pixels.

    Returns:
      The image, or in a few words why there is none (`too many bytes`, `too many pixels`,
      `not an image`, `broken image`); never raises on bad data.
    """
    if len(data) > MAX_BYTES:
        return "too many bytes"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns about odd metadata and sizes we check below
        try:
            image = Image.open(io.BytesIO(data))  # reads the header only
        except Exception:  # parsers of hostile bytes raise nearly anything
            return "not an image"
        if image.width * image.height > MAX_PIXELS:
            return "too many pixels"
        try:
            return _prepare(image, data, size)
        except Exception:
            return "broken image"


def _prepare(image: Image.Image, data: bytes, size: int) -> PreparedImage:
    upright = image.getexif().get(_ORIENTATION, 1) == 1
    keep = image.format == "JPEG" and image.mode == "RGB" and upright and min(image.size) <= size
    if not keep:
        image.draft("RGB", (2 * size, 2 * size))  # a large JPEG need not be decoded in full
    pixels = to_rgb(ImageOps.exif_transpose(image))
    if keep:
        return PreparedImage(data, difference_hash(pixels))
    scale = size / min(pixels.size)
    if scale < 1:
        width, height = (max(size, round(side * scale)) for side in pixels.size)
        pixels = pixels.resize((width, height), Image.Resampling.BICUBIC)
    jpeg = io.BytesIO()
    pixels.save(jpeg, "JPEG", quality=90)
    return PreparedImage(jpeg.getvalue(), difference_hash(pixels))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode → RGB; transparent parts become white."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    elif image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def difference_hash(image: Image.Image) -> int:
    """int64: for an 8 × 8 grid, whether brightness rises from each cell to its right neighbour.

    N. Krawetz, "Kind of like that" (dHash), 2013. Survives resizing and re-encoding.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return int.from_bytes(bits.tobytes(), "big", signed=True)
