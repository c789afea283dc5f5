"""Position tables of vision towers at another image size."""

import math

import jax
import numpy as np


def resize_positions(table: np.ndarray, patches: int) -> np.ndarray:
    """A table of positions for a grid of another size: bicubic with antialiasing, as timm does.

    The class token's row, the first one, stays as it is.

    Args:
      table: float32 [..., 1 + n², width], of a square grid.
      patches: side of the new grid, in patches.

    Returns:
      float32 [..., 1 + patches², width].
    """
    rows, width = table.shape[-2:]
    side = math.isqrt(rows - 1)
    grid = table.reshape(rows, width)[1:].reshape(side, side, width)
    grid = jax.image.resize(grid, (patches, patches, width), "cubic", antialias=True)
    resized = np.concatenate([table.reshape(rows, width)[:1], np.asarray(grid).reshape(-1, width)])
    return resized.reshape(*table.shape[:-2], -1, width)
