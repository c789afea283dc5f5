"""JPEG bytes → augmented uint8 pixels. Three policies, named in `POLICIES`.

Random numbers come from outside (`draw` turns uniforms of the stateless order into parameters),
so that an image depends on (seed, position) alone.

All geometry of the `paper` policy (resize, crop, flip, affine, perspective) is one projective
warp: a pixel is interpolated once, and only the cropped square of the JPEG is ever decoded. Two
small differences from doing the steps one by one: the picture is a little sharper, and where a
perspective reaches outside the frame of the affine step it shows what is there instead of grey.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

NUM_UNIFORMS = 21
FILL = 127.0

Array = Any  # numpy.ndarray while drawn, tf.Tensor while applied


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

    crop: Array
    flip: Array
    hue: Array
    warp: Array
    autocontrast: Array
    equalize: Array
    area: Array
    aspect: Array


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


def paper(jpeg: tf.Tensor, draws: Draws, size: int) -> tf.Tensor:
    """The paper's list: random crop and geometry as one warp, hue, autocontrast, equalize."""
    shape = tf.io.extract_jpeg_shape(jpeg)[:2]
    window = tf.repeat(tf.reduce_min(shape), 2)
    square = decode_window(jpeg, _place(draws.crop, shape, window), window, size)
    image = warp_square(square, draws.warp, size)
    image = tf.image.adjust_hue(image, draws.hue)
    image = tf.cond(draws.autocontrast, lambda: autocontrast(image), lambda: image)
    return tf.cond(draws.equalize, lambda: equalize(image), lambda: image)


def light(jpeg: tf.Tensor, draws: Draws, size: int) -> tf.Tensor:
    """Random resized crop (bilinear), then the optional flip."""
    shape = tf.io.extract_jpeg_shape(jpeg)[:2]
    area, aspect = draws.area * tf.cast(tf.reduce_prod(shape), tf.float32), draws.aspect
    window = tf.cast(tf.round(tf.sqrt(tf.stack([area / aspect, area * aspect]))), tf.int32)
    window = tf.clip_by_value(window, 1, shape)
    pixels = decode_window(jpeg, _place(draws.crop, shape, window), window, 2 * size)
    image = _resize(pixels, size, "bilinear")
    return tf.cond(draws.flip, lambda: tf.reverse(image, [1]), lambda: image)


def none(jpeg: tf.Tensor, draws: Draws, size: int) -> tf.Tensor:
    """`centre_crop`, then the optional flip."""
    image = centre_crop(jpeg, size)
    return tf.cond(draws.flip, lambda: tf.reverse(image, [1]), lambda: image)


def centre_crop(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """Central square of a JPEG, PNG or WebP resized to `size` (bicubic): what evaluation sees.

    The square is cut before resizing, which spares decoding and resizing the rest; it differs
    from resize-then-crop by less than a pixel of position.
    """
    is_jpeg = tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"
    square = tf.cond(is_jpeg, lambda: _jpeg_square(encoded, 2 * size), lambda: _square(encoded))
    return _resize(square, size, "bicubic")


def _jpeg_square(jpeg: tf.Tensor, least: int) -> tf.Tensor:
    shape = tf.io.extract_jpeg_shape(jpeg)[:2]
    window = tf.repeat(tf.reduce_min(shape), 2)
    return decode_window(jpeg, (shape - window) // 2, window, least)


def _square(encoded: tf.Tensor) -> tf.Tensor:
    pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    shape = tf.shape(pixels)[:2]
    side = tf.reduce_min(shape)
    row, column = tf.unstack((shape - side) // 2)
    return tf.ensure_shape(pixels[row : row + side, column : column + side], [None, None, 3])


def _place(crop: tf.Tensor, shape: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """First row and column of a window, the fraction `crop` [2] of the way through its range."""
    return tf.cast(crop * tf.cast(shape - window + 1, tf.float32), tf.int32)


def decode_window(jpeg: tf.Tensor, start: tf.Tensor, window: tf.Tensor, least: int) -> tf.Tensor:
    """Decodes a window (row, column; height, width; int32) of a JPEG, at reduced size if it may.

    The JPEG is decoded at a half, quarter or eighth as long as no side falls below `least`, which
    saves most of the decoding and is a clean low-pass: with `least` the output's side, what a
    warp has left to shrink is less than 2 (up to 16 in all), little enough for one that reads
    four pixels for each one it makes. It is sharper than a bicubic resize, though, so resizing
    asks for twice its output.
    """

    def decode(ratio: int) -> tf.Tensor:
        where = tf.concat([start // ratio, window // ratio], 0)
        return tf.io.decode_and_crop_jpeg(
            jpeg, where, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"
        )

    halvings = tf.reduce_sum(tf.cast(tf.reduce_min(window) // least >= [2, 4, 8], tf.int32))
    return tf.switch_case(halvings, [lambda r=ratio: decode(r) for ratio in (1, 2, 4, 8)])


def _resize(image: tf.Tensor, size: int, method: str) -> tf.Tensor:
    """uint8 [h, w, 3] → uint8 [size, size, 3], with an antialiasing kernel where it matters.

    That kernel costs five times the plain one. Shrinking by less than a quarter (256 → 224) looks
    the same without; bilinear, for augmentation only, may shrink by 2 and still reads every pixel.
    """
    shape = tf.shape(image)[:2]
    plain_up_to = {"bicubic": 1.25, "bilinear": 2.0}[method]

    def resize(antialias: bool) -> tf.Tensor:
        pixels = tf.image.resize(image, [size, size], method, antialias=antialias)
        return tf.cast(tf.clip_by_value(pixels + 0.5, 0, 255), tf.uint8)  # rounds to nearest

    def shrink_or_grow() -> tf.Tensor:
        much = tf.cast(tf.reduce_max(shape), tf.float32) > plain_up_to * size
        return tf.cond(much, lambda: resize(True), lambda: resize(False))

    pixels = tf.cond(tf.reduce_all(shape == size), lambda: image, shrink_or_grow)
    return tf.ensure_shape(pixels, [size, size, 3])


def warp_square(square: tf.Tensor, warp: tf.Tensor, size: int) -> tf.Tensor:
    """Samples uint8 [side, side, 3] bilinearly at the warped places of a [size, size] grid.

    Args:
      square: source pixels.
      warp: float32 [3, 3] as in `Draws`; the identity gives the plain bilinear resize.
      size: side of the output, pixels.

    Returns:
      uint8 [size, size, 3], rounded down; what lies outside the source is grey (127).
    """
    half = tf.cast(tf.shape(square)[0], tf.float32) / 2
    # Pixel i of n covers -1 + 2 (i + ½) / n. The source has a border of one repeated pixel, so
    # that grey begins outside the picture and is not mixed into its outermost half pixel.
    to_pixels = tf.stack([[half, 0.0, half + 0.5], [0.0, half, half + 0.5], [0.0, 0.0, 1.0]])
    step = 2.0 / size
    from_pixels = tf.constant([[step, 0, step / 2 - 1], [0, step, step / 2 - 1], [0, 0, 1]])
    matrix = to_pixels @ warp @ from_pixels
    bordered = tf.concat([square[:1], square, square[-1:]], 0)
    bordered = tf.concat([bordered[:, :1], bordered, bordered[:, -1:]], 1)
    warped = tf.raw_ops.ImageProjectiveTransformV3(
        images=bordered[None],
        transforms=tf.reshape(matrix / matrix[2, 2], [1, 9])[:, :8],
        output_shape=[size, size],
        fill_value=FILL,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.ensure_shape(warped[0], [size, size, 3])


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel of uint8 [h, w, 3] to 0..255, as PIL.ImageOps with no cutoff."""
    low = tf.cast(tf.reduce_min(image, [0, 1]), tf.float32)
    high = tf.cast(tf.reduce_max(image, [0, 1]), tf.float32)
    flat = high == low
    scale = tf.where(flat, 1.0, 255 / tf.where(flat, 1.0, high - low))
    low = tf.where(flat, 0.0, low)
    # Exact values are multiples of 1/255 at most, so a thousandth guards whole ones from falling.
    return tf.cast((tf.cast(image, tf.float32) - low) * scale + 1e-3, tf.uint8)


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Flattens the histogram of each channel of uint8 [h, w, 3], as PIL.ImageOps."""
    planes = tf.cast(tf.transpose(image, [2, 0, 1]), tf.int32)
    values = tf.reshape(planes, [3, -1])
    histogram = tf.math.bincount(values, minlength=256, maxlength=256, axis=-1)  # [3, 256]
    last = tf.gather(histogram, tf.reduce_max(values, 1), batch_dims=1)
    step = ((tf.reduce_sum(histogram, 1) - last) // 255)[:, None]
    below = tf.cumsum(histogram, axis=1, exclusive=True)
    spread = tf.clip_by_value((step // 2 + below) // tf.maximum(step, 1), 0, 255)
    table = tf.where(step > 0, spread, tf.range(256)[None])
    mapped = tf.stack([tf.gather(table[channel], planes[channel]) for channel in range(3)], axis=-1)
    return tf.cast(mapped, tf.uint8)


POLICIES: dict[str, Callable[[tf.Tensor, Draws, int], tf.Tensor]] = {
    "paper": paper,
    "light": light,
    "none": none,
}
