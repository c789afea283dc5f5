"""Where in a picture is what a text says? Heat maps, and how they lie over the picture.

Arrays in, arrays out: how a model embeds pictures and patches is the caller's.
"""

from collections.abc import Callable

import matplotlib
import numpy as np
from PIL import Image

COLORS = "inferno"  # matplotlib's: equal steps of heat look equally large, from dark to bright


def patch_shares(patch_embeds: np.ndarray, text_embed: np.ndarray) -> np.ndarray:
    """Heat of each patch: how much similarity goes without what it gives. One forward pass.

    Args:
      patch_embeds: float [rows, columns, dim], see `HybridClip.encode_patches`.
      text_embed: float [dim], L2-normalised.

    Returns:
      float32 [rows, columns], differences of cosine similarities: above 0 where the patch speaks
      for the text.
    """
    return np.asarray(patch_embeds @ text_embed, np.float32)


def occlusion(
    encode: Callable[[np.ndarray], np.ndarray],
    pixels: np.ndarray,
    text_embed: np.ndarray,
    *,
    cells: int = 8,
    window: int = 2,
) -> np.ndarray:
    """Heat of each cell: how much similarity goes when a window that covers it is painted over.

    Occlusion sensitivity (Zeiler and Fergus 2014, arXiv:1311.2901). A square window slides over
    the picture, cell by cell, and is filled with the picture's mean colour; what each cell gets is
    the mean over all windows that cover it. Windows also hang over the edges, so that every cell
    is covered as often. Costs 1 + (cells + window - 1)² forward passes: 82 unless told otherwise.

    Args:
      encode: uint8 [n, height, width, 3] → float [n, dim], L2-normalised; called once.
      pixels: uint8 [height, width, 3], the picture as the model sees it.
      text_embed: float [dim], L2-normalised.
      cells: rows and columns of the heat map.
      window: side of the window, in cells.

    Returns:
      float32 [cells, cells], differences of cosine similarities: above 0 where the cell speaks for
      the text.

    Raises:
      ValueError: `cells` or `window` is below 1.
    """
    if cells < 1 or window < 1:
        raise ValueError(f"cells and window must be at least 1, found {cells} and {window}")
    places = [(i, j) for i in range(1 - window, cells) for j in range(1 - window, cells)]
    rows, columns = (
        np.linspace(0, side, cells + 1).round().astype(int) for side in pixels.shape[:2]
    )
    pictures = np.repeat(pixels[None], 1 + len(places), axis=0)
    colour = pixels.mean(axis=(0, 1)).round().astype(np.uint8)
    for picture, (i, j) in zip(pictures[1:], places, strict=True):
        bottom, right = min(i + window, cells), min(j + window, cells)
        i, j = max(i, 0), max(j, 0)
        picture[rows[i] : rows[bottom], columns[j] : columns[right]] = colour
    similarity = np.asarray(encode(pictures) @ text_embed, np.float32)
    heat = np.zeros((cells, cells), np.float32)
    for lost, (i, j) in zip(similarity[0] - similarity[1:], places, strict=True):
        heat[max(i, 0) : i + window, max(j, 0) : j + window] += lost
    return heat / window**2


def upsample(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """A heat map as large as a picture: float [rows, columns] → float32 [height, width].

    Linear between the centres of cells and level beyond the outermost ones, so that the highest
    place stays where it is; a smoother curve would move it towards the corners.
    """
    image = Image.fromarray(np.asarray(heat, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def on_whole_picture(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """The heat of the central square, which is all that a model sees, on the whole picture.

    Args:
      heat: float [rows, columns], of the largest square in the middle.
      height: of the picture, in pixels.
      width: likewise.

    Returns:
      float32 [height, width], as `upsample` makes it; NaN outside of the square.
    """
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    whole = np.full((height, width), np.nan, np.float32)
    whole[top : top + side, left : left + side] = upsample(heat, side, side)
    return whole


def overlay(picture: np.ndarray, heat: np.ndarray, opacity: float) -> np.ndarray:
    """Lays the colours of a heat map over a picture.

    Args:
      picture: uint8 [height, width, 3], RGB.
      heat: float [height, width]; its own range, lowest to highest, takes all of `COLORS`. A flat
        one gets the lowest colour. Where it is NaN the picture is darkened instead, by half at
        full opacity.
      opacity: 0 (the picture alone) to 1 (the colours alone).

    Returns:
      uint8 [height, width, 3].

    Raises:
      ValueError: heat and picture have other sizes, or `opacity` is outside of 0 to 1.
    """
    if heat.shape != picture.shape[:2]:
        raise ValueError(f"heat {heat.shape} does not lie on a picture {picture.shape}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be from 0 to 1, found {opacity}")
    seen = np.isfinite(heat)
    colors = picture / 2
    if seen.any():
        values = heat[seen]
        span = values.max() - values.min()
        scaled = (values - values.min()) / span if span > 0 else np.zeros_like(values)
        colors[seen] = matplotlib.colormaps[COLORS](scaled)[:, :3] * 255
    return np.round((1 - opacity) * picture + opacity * colors).astype(np.uint8)
