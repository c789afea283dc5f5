"""Retrieval metrics from embeddings: exact, in blocks, ties counted against the model.

Arrays in, numbers out. A score is the dot product of two embeddings (their cosine, since the model
normalises them). All values but the median rank are fractions from 0 to 1.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

DIRECTIONS = ("text_to_image", "image_to_text")
KS = (1, 5, 10)
RETRIEVAL_METRICS = tuple(
    f"{direction}/{name}"
    for direction in DIRECTIONS
    for name in (*(f"R@{k}" for k in KS), *(f"MRR@{k}" for k in KS), "median_rank")
)
_BLOCK_SCORES = 2**23  # scores held at a time (32 MiB), whatever the number of candidates


def ranks(
    query_embeds: np.ndarray,
    candidate_embeds: np.ndarray,
    query_group: np.ndarray,
    candidate_group: np.ndarray,
) -> np.ndarray:
    """Rank of the best relevant candidate of each query, counted from 1.

    A candidate is relevant to a query of the same group (for instance: both belong to image 7).
    Rank = 1 + number of non-relevant candidates that score at least as high as the best relevant
    one, so a tie counts against the model, and a model whose embeddings are all alike ranks last.
    Needs memory for the candidates and a block of scores, never queries x candidates.

    Args:
      query_embeds: float [queries, dim].
      candidate_embeds: float [candidates, dim].
      query_group: int [queries].
      candidate_group: int [candidates].

    Returns:
      int64 [queries].

    Raises:
      ValueError: shapes do not fit, an embedding is not finite, or a query has nothing relevant.
    """
    queries = _checked(query_embeds, query_group, "query")
    candidates = _checked(candidate_embeds, candidate_group, "candidate")
    if queries.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"embeddings must share one width, found {queries.shape[1]} and {candidates.shape[1]}"
        )
    order, first, count = _relevant(np.asarray(query_group), np.asarray(candidate_group))
    distinct, copy_of = _distinct_rows(candidates)
    result = np.empty(len(queries), np.int64)
    for rows in _blocks(len(queries), len(candidates)):
        scores = queries[rows] @ distinct.T
        if len(distinct) < len(candidates):
            scores = scores[:, copy_of]
        # The block's (query, relevant candidate) pairs, laid out one query after the other.
        starts = np.cumsum(count[rows]) - count[rows]
        query = np.repeat(np.arange(len(starts)), count[rows])
        pair = np.arange(len(query)) - starts[query] + first[rows][query]
        relevant = scores[query, order[pair]]
        best = np.maximum.reduceat(relevant, starts)
        # Counting what is lower makes a score that is not a number count against the model.
        lower = np.count_nonzero(scores < best[:, None], axis=1)
        own = np.add.reduceat(~(relevant < best[query]), starts, dtype=np.int64)
        result[rows] = 1 + scores.shape[1] - lower - own
    return result


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Fraction of queries whose best relevant candidate is among the first k."""
    return float(np.mean(ranks <= k))


def mrr_at_k(ranks: np.ndarray, k: int) -> float:
    """Mean over queries of 1 / rank where rank <= k, else 0 (as the CLIP-Italian paper)."""
    return float(np.mean(np.where(ranks <= k, 1 / ranks, 0.0)))


def median_rank(ranks: np.ndarray) -> float:
    """Median of the ranks; the mean of the middle two when their number is even."""
    return float(np.median(ranks))


def retrieval_metrics(
    image_embeds: np.ndarray, text_embeds: np.ndarray, caption_image: np.ndarray
) -> dict[str, float]:
    """Retrieval in both directions: the names of `RETRIEVAL_METRICS` with their values.

    Text to image looks for the caption's one image among all images; image to text for the best
    placed of the image's captions among all captions.

    Args:
      image_embeds: float [images, dim].
      text_embeds: float [captions, dim].
      caption_image: int [captions], index of each caption's image.

    Raises:
      ValueError: as `ranks`; also when an image has no caption.
    """
    images = np.arange(len(image_embeds))
    by_direction = {
        "text_to_image": ranks(text_embeds, image_embeds, caption_image, images),
        "image_to_text": ranks(image_embeds, text_embeds, images, caption_image),
    }
    values = {}
    for direction, found in by_direction.items():
        values |= {f"{direction}/R@{k}": recall_at_k(found, k) for k in KS}
        values |= {f"{direction}/MRR@{k}": mrr_at_k(found, k) for k in KS}
        values[f"{direction}/median_rank"] = median_rank(found)
    return values


def _checked(embeds: np.ndarray, group: np.ndarray, side: str) -> np.ndarray:
    embeds = np.asarray(embeds, dtype=np.float32)
    if embeds.ndim != 2 or len(embeds) == 0 or np.shape(group) != (len(embeds),):
        raise ValueError(
            f"{side} embeddings must be [rows, dim] with at least one row and one group a row, "
            f"found {embeds.shape} and groups {np.shape(group)}"
        )
    bad = np.flatnonzero(~np.isfinite(embeds).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(embeds)} {side} embeddings are not finite, the first in row "
            f"{bad[0]}: has training diverged?"
        )
    return embeds


def _relevant(
    query_group: np.ndarray, candidate_group: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query q's relevant candidates are `order[first[q] : first[q] + count[q]]`."""
    order = np.argsort(candidate_group, kind="stable")
    grouped = candidate_group[order]
    first = np.searchsorted(grouped, query_group, side="left")
    count = np.searchsorted(grouped, query_group, side="right") - first
    lost = np.flatnonzero(count == 0)
    if len(lost):
        raise ValueError(
            f"{len(lost)} of {len(count)} queries have no relevant candidate, the first is "
            f"query {lost[0]} of group {query_group[lost[0]]}"
        )
    return order, first, count


def _distinct_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows without repetition, and for each row its index among them.

    Matrix products round equal columns differently at the edge of a tile (seen with OpenBLAS), so
    that equal candidates would tie or not by their place. Scored once, they always tie.
    """
    seen: dict[bytes, int] = {}
    rows = np.ascontiguousarray(rows + np.float32(0))  # -0 becomes 0
    copy_of = np.array(
        [seen.setdefault(hashlib.blake2b(row, digest_size=16).digest(), len(seen)) for row in rows]
    )
    first = np.unique(copy_of, return_index=True)[1]
    return (rows if len(first) == len(rows) else rows[first]), copy_of


def _blocks(queries: int, candidates: int) -> Iterator[slice]:
    size = max(16, _BLOCK_SCORES // candidates)
    for start in range(0, queries, size):
        yield slice(start, start + size)
