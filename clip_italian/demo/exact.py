"""Exact search: every query against every row."""

import numpy as np

_SCORES = 2**25  # float32 scores held at once: 128 MiB


def top_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """int64 [≤ k]: rows of the highest of `scores` (float [rows]), best first, ties by row."""
    k = min(k, len(scores))
    if k < 1:
        return np.zeros(0, np.int64)
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > least)
    equal = np.flatnonzero(scores == least)[: k - len(above)]
    rows = np.concatenate([above, equal])
    return rows[np.lexsort((rows, -scores[rows]))]


def search(
    image_embeds: np.ndarray, queries: np.ndarray, k: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The k rows nearest to each query by inner product.

    Args:
      image_embeds: float32 [rows, dim].
      queries: float32 [queries, dim].
      k: how many to find.

    Returns:
      For each query rows int64 [≤ k] and their scores float32 [≤ k], best first, ties by row.
    """
    found = []
    block = max(1, _SCORES // max(1, len(image_embeds)))
    for start in range(0, len(queries), block):
        for scores in queries[start : start + block] @ image_embeds.T:
            rows = top_rows(scores, k)
            found.append((rows, scores[rows]))
    return found
