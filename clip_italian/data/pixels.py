"""Single pictures as uint8 arrays [height, width, 3], RGB: decoding, resizing, warping, colour.

OpenCV does the work, in a tenth to a half of the time that TensorFlow's own operations take.
"""

import io
import struct
import warnings
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image

from clip_italian.data.records import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS

cv2.setNumThreads(1)  # pictures are worked on side by side; more threads would only disturb

Shape = tuple[int, int]  # height and width, pixels
Place = np.ndarray | Sequence[float]  # [2], (y, x) from 0 to 1
FILL = (127, 127, 127)
_LEVELS = np.arange(256)


class ImageError(RuntimeError):
    """A picture cannot be decoded."""


def decode(
    data: bytes, least: int, window: Callable[[Shape], Shape] = lambda shape: shape
) -> np.ndarray:
    """Encoded picture → uint8 [height, width, 3] RGB, at reduced size if it may.

    A JPEG is decoded at a half, quarter or eighth as long as no side of the window needed falls
    below `least`: it saves time, and is a clean low-pass. With `least` the output's side, what is
    left to shrink is less than 2 (up to 16 in all), little enough for a warp, which reads four
    pixels for each one it makes.

    Raises:
      ImageError: the picture is no whole one, or larger than `MAX_IMAGE_BYTES` or
        `MAX_IMAGE_PIXELS`.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(f"{len(data):,} bytes; at most {MAX_IMAGE_BYTES:,} are read")
    shape = jpeg_shape(data)
    height, width = shape or _header_shape(data)
    if height * width > MAX_IMAGE_PIXELS:
        raise ImageError(f"{width:,} × {height:,} pixels; at most {MAX_IMAGE_PIXELS:,} are read")
    times = min(window(shape)) // least if shape else 1
    how = next(flag for factor, flag in _SCALES if times >= factor)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), how | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:  # of no bytes, or of too many pixels
        raise ImageError(str(error)) from error
    if pixels is None:
        raise ImageError(f"{len(data)} bytes that begin with {data[:8]!r} are no whole picture")
    return pixels


def _header_shape(data: bytes) -> Shape:
    """Height and width as any other header states them."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except Exception as error:  # parsers of hostile bytes raise nearly anything
        raise ImageError(
            f"{len(data)} bytes that begin with {data[:8]!r} are no whole picture: {error}"
        ) from error


# Times by which a picture may be reduced → OpenCV's flag; the coloured names of these mean BGR.
_SCALES = (
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB),
    (0, cv2.IMREAD_COLOR_RGB),
)


def jpeg_shape(data: bytes) -> Shape | None:
    """Height and width as a JPEG's header states them; None for anything else."""
    place = 2 if data[:2] == b"\xff\xd8" else len(data)
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame begins
            return struct.unpack_from(">HH", data, place + 5)
        place += 1 if marker == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def cut(pixels: np.ndarray, window: Shape, place: Place | None = None) -> np.ndarray:
    """A window, the fractions `place` (y, x) of the way through its range, or in the middle."""
    height, width = window
    free = pixels.shape[0] - height, pixels.shape[1] - width
    row, column = free[0] // 2, free[1] // 2
    if place is not None:
        # A fraction just below 1 is 1 in float32.
        row, column = (
            min(int(part * (most + 1)), most) for part, most in zip(place, free, strict=True)
        )
    return pixels[row : row + height, column : column + width]


def cut_square(pixels: np.ndarray, place: Place | None = None) -> np.ndarray:
    """The largest square, likewise."""
    side = min(pixels.shape[:2])
    return cut(pixels, (side, side), place)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [h, w, 3] → uint8 [size, size, 3]; every pixel of the source is read.

    Bilinear up to a shrinking by 2, where that reads them all; averages of areas beyond.
    """
    much = max(image.shape[:2]) > 2 * size
    how = cv2.INTER_AREA if much else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=how)


def resize_bicubic(image: np.ndarray, size: int) -> np.ndarray:
    """As `resize` with Pillow's antialiased bicubic, which takes six times as long."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def mirror(image: np.ndarray) -> np.ndarray:
    """Left to right."""
    return cv2.flip(image, 1)


def warp_square(square: np.ndarray, warp: np.ndarray, size: int) -> np.ndarray:
    """Samples uint8 [side, side, 3] bilinearly at the warped places of a [size, size] grid.

    Args:
      square: source pixels.
      warp: float32 [3, 3] as in `Draws`; the identity gives the plain bilinear resize.
      size: side of the output, pixels.

    Returns:
      uint8 [size, size, 3]; what lies outside the source is grey (127).
    """
    half, step = len(square) / 2, 2 / size
    # Pixel i of n covers -1 + 2 (i + ½) / n. The source has a border of one repeated pixel, so
    # that grey begins outside the picture and is not mixed into its outermost half pixel.
    to_pixels = np.array([[half, 0, half + 0.5], [0, half, half + 0.5], [0, 0, 1]])
    from_pixels = np.array([[step, 0, step / 2 - 1], [0, step, step / 2 - 1], [0, 0, 1]])
    return cv2.warpPerspective(
        cv2.copyMakeBorder(square, 1, 1, 1, 1, cv2.BORDER_REPLICATE),
        to_pixels @ warp @ from_pixels,
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=FILL,
    )


def shift_hue(image: np.ndarray, hue: float) -> np.ndarray:
    """Turns the hue of uint8 [h, w, 3] by a part of the colour circle, in steps of 1/256."""
    turn = round(hue * 256) % 256
    if not turn:
        return image
    turned = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    turned[..., 0] += np.uint8(turn)  # 256 is the whole circle
    return cv2.cvtColor(turned, cv2.COLOR_HSV2RGB_FULL)


def stretch(image: np.ndarray, autocontrast: bool, equalize: bool) -> np.ndarray:
    """PIL.ImageOps' `autocontrast`, then its `equalize`, of uint8 [h, w, 3], as one table."""
    if not (autocontrast or equalize):
        return image
    tables = []
    for channel in range(3):
        histogram = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        table = _autocontrast(histogram) if autocontrast else _LEVELS
        if equalize:
            moved = (
                np.bincount(table, histogram, 256).astype(np.int64) if autocontrast else histogram
            )
            table = _equalize(moved)[table]
        tables.append(table)
    return cv2.LUT(image, np.stack(tables, axis=-1).astype(np.uint8)[None])


def _autocontrast(histogram: np.ndarray) -> np.ndarray:
    """int64 [256] counts → int64 [256]: the levels there are, stretched to 0..255."""
    there = histogram.nonzero()[0]
    low, high = there[0], there[-1]
    if low == high:
        return _LEVELS
    scale = 255 / (high - low)
    return np.clip((_LEVELS * scale - low * scale).astype(np.int64), 0, 255)


def _equalize(histogram: np.ndarray) -> np.ndarray:
    """int64 [256] counts → int64 [256]: every level gets its share of the scale."""
    step = (histogram.sum() - histogram[histogram.nonzero()[0][-1]]) // 255
    if not step:
        return _LEVELS
    below = np.cumsum(histogram) - histogram
    return np.clip((step // 2 + below) // step, 0, 255)
