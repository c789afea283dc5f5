"""Retrieval metrics from embeddings: exact, in blocks, ties counted against the model.

Arrays in, numbers out. A score is the dot product of two embeddings (their cosine, since the model
normalises them). All values but the median rank are fractions from 0 to 1.

The arithmetic for 1 million queries against 1 million candidates at 512 dimensions: 2 · 10⁶ · 10⁶ ·
512 = 1.02e15 floating point operations a direction, which are 2.8 hours at 100 GFLOP/s and 20
seconds at 50 TFLOP/s; the inputs take 2.05 GB a side, the candidates once on each device beside
them, and a block of scores 256 MiB a device. The scores as a whole would take 4 TB.
"""

import functools
import hashlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DIRECTIONS = ("text_to_image", "image_to_text")
KS = (1, 5, 10)
SUMMARY = (*(f"R@{k}" for k in KS), *(f"MRR@{k}" for k in KS), "median_rank")
RETRIEVAL_METRICS = tuple(f"{direction}/{name}" for direction in DIRECTIONS for name in SUMMARY)

_AXIS = "query"
_FEWEST = 16  # queries for which a device is put to work
_CALL_QUERIES = 4096  # queries of a device between two returns to Python
_BLOCK_SCORES = 2**26  # scores that a device holds at a time (256 MiB) ...
_BLOCK_QUERIES = (64, 512)  # ... within these numbers of queries, where matrix products are fast
_PARTS = 16  # of a row of scores that are counted side by side


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
    Queries are split over this process's devices, in float32; memory is for the embeddings and a
    block of scores, never queries x candidates.

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
    devices = jax.local_devices()[: -(-len(queries) // _FEWEST)]
    mesh = Mesh(np.array(devices), (_AXIS,))
    # Padded to thousands (a padding row is the copy of none), so that few sizes are compiled.
    pool = jax.device_put(
        (
            _padded(distinct, 1024),
            _padded(np.bincount(copy_of).astype(np.int32), 1024),
            _padded(copy_of[order].astype(np.int32), 1024),
        ),
        NamedSharding(mesh, PartitionSpec()),
    )
    result = np.empty(len(queries), np.int64)
    for rows, size, block in _calls(len(queries), len(pool[0]), mesh.size):
        asked = [_padded(x[rows], size * mesh.size) for x in (queries, first, count)]
        # Dealt round: all devices get as many, also of a call that is not full.
        asked = [x.reshape(size, mesh.size, *x.shape[1:]) for x in asked]
        blocks = -(-len(result[rows]) // (block * mesh.size))
        found = _call_ranks(mesh, block, np.int32(blocks), asked, pool)
        result[rows] = np.asarray(found).ravel()[: len(result[rows])]
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


def summary(ranks: np.ndarray) -> dict[str, float]:
    """All values of one direction: the names of `SUMMARY` with their values."""
    values = {f"R@{k}": recall_at_k(ranks, k) for k in KS}
    values |= {f"MRR@{k}": mrr_at_k(ranks, k) for k in KS}
    return values | {"median_rank": median_rank(ranks)}


def retrieval_ranks(
    image_embeds: np.ndarray, text_embeds: np.ndarray, caption_image: np.ndarray
) -> dict[str, np.ndarray]:
    """Ranks in both directions: {direction: int64 [captions] or [images]}.

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
    return {
        "text_to_image": ranks(text_embeds, image_embeds, caption_image, images),
        "image_to_text": ranks(image_embeds, text_embeds, images, caption_image),
    }


def retrieval_metrics(
    image_embeds: np.ndarray, text_embeds: np.ndarray, caption_image: np.ndarray
) -> dict[str, float]:
    """Retrieval in both directions: the names of `RETRIEVAL_METRICS` with their values.

    Args and errors are those of `retrieval_ranks`.
    """
    found = retrieval_ranks(image_embeds, text_embeds, caption_image)
    return {
        f"{direction}/{name}": value
        for direction in DIRECTIONS
        for name, value in summary(found[direction]).items()
    }


def _checked(embeds: np.ndarray, group: np.ndarray, side: str) -> np.ndarray:
    embeds = np.asarray(embeds, dtype=np.float32)
    if embeds.ndim != 2 or len(embeds) == 0 or np.shape(group) != (len(embeds),):
        raise ValueError(
            f"{side} embeddings must be [rows, dim] with at least one row and one group a row, "
            f"found {embeds.shape} and groups {np.shape(group)}"
        )
    # NaN and infinities show in a row's extremes; a mask of all entries would be as long as they.
    bad = np.flatnonzero(~np.isfinite(embeds.max(axis=1)) | ~np.isfinite(embeds.min(axis=1)))
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
    return order, first.astype(np.int32), count.astype(np.int32)


def _distinct_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows without repetition, and for each row its index among them.

    Matrix products round equal columns differently at the edge of a tile (seen with OpenBLAS), so
    that equal candidates would tie or not by their place. Scored once, they always tie.
    """
    seen: dict[bytes, int] = {}
    zero = np.float32(0)  # -0 + 0 = 0
    copy_of = np.array(
        [
            seen.setdefault(hashlib.blake2b(row + zero, digest_size=16).digest(), len(seen))
            for row in rows
        ]
    )
    first = np.unique(copy_of, return_index=True)[1]
    return (rows if len(first) == len(rows) else rows[first]), copy_of


def _padded(rows: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(rows, [(0, -len(rows) % multiple), *[(0, 0)] * (rows.ndim - 1)])


def _calls(queries: int, candidates: int, devices: int) -> Iterator[tuple[slice, int, int]]:
    """(rows of a call, rows of a device, rows that it scores at a time); the last two all alike."""
    size = min(_CALL_QUERIES, max(_FEWEST, _power_of_two(-(-queries // devices))))
    fitting = _power_of_two(_BLOCK_SCORES // candidates + 1) // 2
    block = min(size, max(_BLOCK_QUERIES[0], min(_BLOCK_QUERIES[1], fitting)))
    for start in range(0, queries, size * devices):
        yield slice(start, start + size * devices), size, block


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


@functools.partial(jax.jit, static_argnames=("mesh", "block"))
def _call_ranks(
    mesh: Mesh, block: int, blocks: jax.Array, asked: list[jax.Array], pool: tuple[jax.Array, ...]
) -> jax.Array:
    """Ranks of one call, [rows of a device, devices]; only the first `blocks` are filled in."""
    split = PartitionSpec(None, _AXIS)

    def device_ranks(blocks, asked, pool):
        def fill(i, filled):
            part = [lax.dynamic_slice_in_dim(x[:, 0], i * block, block) for x in asked]
            return lax.dynamic_update_slice_in_dim(
                filled, _block_ranks(*part, *pool), i * block, axis=0
            )

        # A loop on the device reuses the memory of scores: fresh pages took half the time again.
        return lax.fori_loop(0, blocks, fill, jnp.zeros(len(asked[0]), jnp.int32))[:, None]

    return jax.shard_map(
        device_ranks,
        mesh=mesh,
        in_specs=(PartitionSpec(), split, PartitionSpec()),
        out_specs=split,
        check_vma=False,
    )(blocks, asked, pool)


def _block_ranks(
    queries: jax.Array,
    first: jax.Array,
    count: jax.Array,
    distinct: jax.Array,
    copies: jax.Array,
    relevant: jax.Array,
) -> jax.Array:
    """Ranks from one matrix product, from which also the relevant candidates take their score.

    Args:
      queries: float32 [block, dim].
      first: int32 [block], where each query's relevant candidates begin in `relevant`.
      count: int32 [block], how many there are.
      distinct: float32 [rows, dim], candidates without repetition.
      copies: int32 [rows], how many candidates each of them stands for.
      relevant: int32 [candidates], rows of `distinct`, grouped.

    Returns:
      int32 [block].
    """
    # float32 as it is: accelerators would round the factors to fewer bits.
    scores = lax.dot_general(
        queries, distinct, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
    )

    def own_score(i):
        row = relevant[jnp.minimum(first + i, len(relevant) - 1)]
        score = jnp.take_along_axis(scores, row[:, None], axis=1, mode="clip")[:, 0]
        return jnp.where(i < count, score, -jnp.inf)

    def count_own(i, found):
        return found + ((i < count) & ~(own_score(i) < best)).astype(jnp.int32)

    lowest = jnp.full(len(queries), -jnp.inf, scores.dtype)
    best = lax.fori_loop(0, count.max(), lambda i, best: jnp.maximum(best, own_score(i)), lowest)
    own = lax.fori_loop(0, count.max(), count_own, jnp.zeros(len(queries), jnp.int32))
    # Not `>=`: a score that is not a number counts against the model. And not one sum over the
    # row: XLA vectorises a comparison on CPUs only outside a reduction (10 times faster).
    parts = zip(jnp.split(scores, _PARTS, axis=1), jnp.split(copies, _PARTS), strict=True)
    at_least = sum(jnp.where(s < best[:, None], 0, c[None, :]) for s, c in parts)
    return 1 + jnp.sum(at_least, axis=1) - own
