"""Encoded pictures → augmented uint8 pixels. Three policies, named in `POLICIES`.

Random numbers come from outside (`draw` turns uniforms of the stateless order into parameters),
so that an image depends on (seed, position) alone.

All geometry of the `paper` policy (resize, crop, flip, affine, perspective) is one projective
warp, autocontrast and equalize are one table: a pixel is interpolated once and looked up once.
Two small differences from doing the steps one by one: the picture is a little sharper, and where
a perspective reaches outside the frame of the affine step it shows what is there instead of grey.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from clip_italian.data.pixels import (
    Shape,
    cut,
    cut_square,
    decode,
    mirror,
    resize,
    resize_bicubic,
    shift_hue,
    stretch,
    warp_square,
)

NUM_UNIFORMS = 21


class Draws(NamedTuple):
    """Random parameters of n images; without the leading n they are those of one image.

    Attributes:
      crop: float32 [n, 2], where in its range the crop lies, (y, x) from 0 to 1.
      flip: bool [n], mirror left to right.
      hue: float32 [n], hue shift as a part of the colour circle.
      warp: float32 [n, 3, 3], projective map (homogeneous x, y, 1) from output to cropped
        square; both span -1 to 1, y downwards.
      autocontrast: bool [n].
      equalize: bool [n].
      area: float32 [n], area of a random resized crop as a part of the image's.
      aspect: float32 [n], width over height of a random resized crop, in pixels.
    """

    crop: np.ndarray
    flip: np.ndarray
    hue: np.ndarray
    warp: np.ndarray
    autocontrast: np.ndarray
    equalize: np.ndarray
    area: np.ndarray
    aspect: np.ndarray


def draw(uniforms: np.ndarray, flip: bool) -> Draws:
    """Uniform numbers [n, NUM_UNIFORMS] in [0, 1) → parameters for any policy.

    Ranges of the paper's policy: hue ±0.1, rotation ±15°, shift ±0.1 of the side, scale 0.8 to
    1.2, shear ±15° in x and y, perspective 0.3 (p = 0.3), autocontrast and equalize p = 0.3.
    Ranges of `light`: area 0.5 to 1, aspect 3/4 to 4/3 (uniform in its logarithm).
    """
    u = uniforms.T
    flipped = (u[2] < 0.5) & flip
    degrees = np.pi / 180
    affine = _affine(
        angle=(2 * u[4] - 1) * 15 * degrees,
        shift=(2 * uniforms[:, 5:7] - 1) * 0.1,
        scale=0.8 + 0.4 * u[7],
        shear=(2 * uniforms[:, 8:10] - 1) * 15 * degrees,
    )
    # The paper's transforms each move pixels forward; sampling runs backwards through them.
    warp = _mirror(flipped) @ np.linalg.inv(affine) @ _perspective(uniforms[:, 11:19], u[10] < 0.3)
    return Draws(
        crop=uniforms[:, 0:2].astype(np.float32),
        flip=flipped,
        hue=((2 * u[3] - 1) * 0.1).astype(np.float32),
        warp=(warp / warp[:, 2:, 2:]).astype(np.float32),
        autocontrast=u[19] < 0.3,
        equalize=u[20] < 0.3,
        area=(0.5 + 0.5 * u[3]).astype(np.float32),
        aspect=np.exp((2 * u[4] - 1) * np.log(4 / 3)).astype(np.float32),
    )


def _affine(
    angle: np.ndarray, shift: np.ndarray, scale: np.ndarray, shear: np.ndarray
) -> np.ndarray:
    """[n, 3, 3] maps about the centre: scale, shear in x, shear in y, rotate, shift.

    Args:
      angle: [n] radians, clockwise on the screen (y points down).
      shift: [n, 2] (x, y) in parts of the side; the frame is 2 wide.
      scale: [n] factor.
      shear: [n, 2] radians in x and in y.
    """
    rotate = _matrices(np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle))
    shear_y = _matrices(1, 0, np.tan(shear[:, 1]), 1)
    shear_x = _matrices(1, np.tan(shear[:, 0]), 0, 1)
    matrix = rotate @ shear_y @ shear_x @ _matrices(scale, 0, 0, scale)
    matrix[:, :2, 2] = 2 * shift
    return matrix


def _mirror(flip: np.ndarray) -> np.ndarray:
    return _matrices(np.where(flip, -1.0, 1.0), 0, 0, 1)


def _matrices(a, b, c, d) -> np.ndarray:
    """[n, 3, 3] with the linear part [[a, b], [c, d]]; each an array [n] or a number."""
    a, b, c, d = np.broadcast_arrays(a, b, c, d)
    matrix = np.zeros((*a.shape, 3, 3))
    matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1] = a, b, c, d
    matrix[:, 2, 2] = 1
    return matrix


def _perspective(uniforms: np.ndarray, apply: np.ndarray) -> np.ndarray:
    """[n, 3, 3] maps of four inward-moved corners to the corners of the frame, or the identity.

    Each corner moves inward by up to 0.3 of half the side in x and in y (uniforms [n, 8]).
    """
    corners = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    moved = corners * (1 - 0.3 * uniforms.reshape(-1, 4, 2))
    x, y = moved[..., 0], moved[..., 1]  # [n, 4]
    one, zero = np.ones_like(x), np.zeros_like(x)
    rows = []
    for axis in (0, 1):  # corner = (m0 x + m1 y + m2) / (m6 x + m7 y + 1), likewise for y
        own, other = [x, y, one], [zero, zero, zero]
        target = np.broadcast_to(corners[:, axis], x.shape)
        left = own + other if axis == 0 else other + own
        rows.append(np.stack([*left, -x * target, -y * target], axis=-1))
    right = np.broadcast_to(corners.T.reshape(8, 1), (len(x), 8, 1))
    solution = np.linalg.solve(np.concatenate(rows, axis=1), right)[..., 0]
    matrix = np.concatenate([solution, np.ones((len(x), 1))], axis=1).reshape(-1, 3, 3)
    return np.where(apply[:, None, None], matrix, np.eye(3))


def paper(data: bytes, draws: Draws, size: int) -> np.ndarray:
    """The paper's list: random crop and geometry as one warp, hue, autocontrast, equalize."""
    square = cut_square(decode(data, size), draws.crop)
    image = shift_hue(warp_square(square, draws.warp, size), float(draws.hue))
    return stretch(image, bool(draws.autocontrast), bool(draws.equalize))


def light(data: bytes, draws: Draws, size: int) -> np.ndarray:
    """Random resized crop, then the optional flip."""

    def window(shape: Shape) -> Shape:
        area = float(draws.area) * shape[0] * shape[1]
        height, width = math.sqrt(area / draws.aspect), math.sqrt(area * draws.aspect)
        return min(max(round(height), 1), shape[0]), min(max(round(width), 1), shape[1])

    pixels = decode(data, size, window)
    image = resize(cut(pixels, window((pixels.shape[0], pixels.shape[1])), draws.crop), size)
    return mirror(image) if draws.flip else image


def none(data: bytes, draws: Draws, size: int) -> np.ndarray:
    """Central square, then the optional flip."""
    image = resize(cut_square(decode(data, size)), size)
    return mirror(image) if draws.flip else image


def centre_crop(data: bytes, size: int) -> np.ndarray:
    """Central square of a JPEG, PNG or WebP resized to `size`: what evaluation sees.

    The resize is Pillow's bicubic. The square is cut before it, which spares resizing the rest
    and differs from resize-then-crop by less than a pixel of position. A JPEG four or more times
    as large as `size` is decoded at a reduced size that still is twice as large.
    """
    return resize_bicubic(cut_square(decode(data, 2 * size)), size)


POLICIES: dict[str, Callable[[bytes, Draws, int], np.ndarray]] = {
    "paper": paper,
    "light": light,
    "none": none,
}
