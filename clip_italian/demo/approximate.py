"""An approximate index over the rows of an index of pictures: the only file that imports faiss.

Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical
Navigable Small World graphs", 2016 (HNSW). Jégou, Douze and Schmid, "Product Quantization for
Nearest Neighbor Search", 2011 (inverted files, IVF; here without quantization).
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from clip_italian.config import ConfigError
from clip_italian.demo import exact, storage
from clip_italian.demo.index import open_index
from clip_italian.evaluation.encoders import Encoder
from clip_italian.evaluation.languages.it.names import imagenet_pack

faiss: Any = _faiss  # its classes are made at run time, where no type checker sees them

HNSW_FROM, IVF_FROM = 20_000, 1_000_000  # rows
LEAST_RECALL = 0.95
_K, _QUERIES, _TIMED = 10, 200, 50
_LINKS, _CONSTRUCTION = 32, 80  # HNSW's M and efConstruction
_EQUAL = 1e-6  # two scores that are so near are one, rounded differently

Found = list[tuple[np.ndarray, np.ndarray]]


class Searcher:
    """An approximate index that can be asked, from several threads."""

    def __init__(self, index: Any, kind: str, effort: int) -> None:
        """Joins faiss's index, its kind and what a search looks at (efSearch or nprobe)."""
        self.index, self.kind, self.effort = index, kind, effort

    def search(self, queries: np.ndarray, k: int) -> Found:
        """As `exact.search`; may find other rows, or fewer."""
        k = min(k, self.index.ntotal)
        if self.kind == "hnsw":
            settings = faiss.SearchParametersHNSW(efSearch=max(self.effort, k))
        else:
            settings = faiss.SearchParametersIVF(nprobe=self.effort)
        found = []
        for scores, rows in zip(*self.index.search(queries, k, params=settings), strict=True):
            scores, rows = scores[rows >= 0], rows[rows >= 0]
            order = np.lexsort((rows, -scores))
            found.append((rows[order], scores[order]))
        return found


def build_approximate(
    folder: str | Path, encoder: Encoder, least_recall: float = LEAST_RECALL
) -> str:
    """Adds an approximate index to an index that is large enough to need one.

    Args:
      folder: of the index.
      encoder: its model, which encodes the texts that recall is measured with.
      least_recall: recall@10 against exact search that pictures and texts must reach as queries.

    Returns:
      What was done, for people.

    Raises:
      ConfigError: there is no index, it is of another model, cannot be written, or no setting
        reaches the recall.
    """
    folder = Path(folder)
    with storage.updating(folder):
        index = open_index(folder, encoder.fingerprint)
        kind = kind_for(len(index))
        there = index.approximate
        if not kind:
            spent = _milliseconds(lambda query: index.search(query[0], _K), index.image_embeds)
            return (
                f"approximate index: not needed below {HNSW_FROM:,} pictures; exact search of "
                f"{len(index):,} takes {spent:.1f} ms"
            )
        if there is None or min(there.recall_pictures, there.recall_texts) < least_recall:
            texts = encoder.encode_texts(query_texts())
            there = build(folder, index.image_embeds, texts, kind, least_recall)
            manifest = storage.read_manifest(folder)
            assert manifest is not None
            manifest = dataclasses.replace(manifest, approximate=there)
            storage.write_manifest(folder, manifest)
            storage.remove_leftovers(folder, manifest)
    return text(there)


def kind_for(rows: int) -> str:
    """What suits so many rows: "hnsw", "ivf", or "" where exact search is fast enough."""
    return "" if rows < HNSW_FROM else "hnsw" if rows < IVF_FROM else "ivf"


def query_texts() -> list[str]:
    """200 Italian prompts, of classes and templates in turn."""
    pack = imagenet_pack()
    classes = range(0, len(pack.classes), len(pack.classes) // _QUERIES)
    return [pack.prompts(number)[number % len(pack.templates)] for number in classes]


def build(
    folder: Path, image_embeds: np.ndarray, text_embeds: np.ndarray, kind: str, least_recall: float
) -> storage.Approximate:
    """Builds, tunes and writes an approximate index; the manifest is not touched.

    Args:
      folder: where its file goes.
      image_embeds: float32 [rows, dim], rows of length 1.
      text_embeds: float32 [texts, dim]: queries to measure recall with, beside some of the images.
      kind: "hnsw" or "ivf".
      least_recall: see `build_approximate`, which also says what is raised.
    """
    index = _make(image_embeds, kind)
    searcher, pictures, texts = _tune(index, kind, image_embeds, text_embeds, least_recall)
    made = storage.write_data(
        folder, "approximate", len(image_embeds), lambda path: faiss.write_index(index, str(path))
    )
    return storage.Approximate(
        **vars(made),
        kind=kind,
        effort=searcher.effort,
        recall_pictures=pictures,
        recall_texts=texts,
        exact_ms=_milliseconds(lambda query: exact.search(image_embeds, query, _K), text_embeds),
        approximate_ms=_milliseconds(lambda query: searcher.search(query, _K), text_embeds),
    )


def read(folder: Path, said: storage.Approximate, shape: Sequence[int]) -> Searcher:
    """Reads an approximate index whose sha256 is what the manifest says.

    Raises:
      ConfigError: it is damaged, or not over as many rows of that width (`shape`).
    """
    path = folder / said.file
    storage.check_sum(path, said)
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise storage.damaged(path, str(error).splitlines()[0]) from error
    wanted = faiss.IndexHNSWFlat if said.kind == "hnsw" else faiss.IndexIVFFlat
    if not isinstance(index, wanted) or (index.ntotal, index.d) != tuple(shape):
        raise storage.damaged(path, f"{type(index).__name__} of {index.ntotal} rows of {index.d}")
    return Searcher(index, said.kind, said.effort)


def text(made: storage.Approximate) -> str:
    """An approximate index in one line, for people."""
    setting = "efSearch" if made.kind == "hnsw" else "nprobe"
    return (
        f"approximate index: {made.kind}, {setting} {made.effort}, {made.bytes:,} bytes; recall@10 "
        f"against exact search {made.recall_pictures:.3f} of pictures, {made.recall_texts:.3f} of "
        f"texts; {made.approximate_ms:.2f} ms a query, exact {made.exact_ms:.2f} ms"
    )


def _make(image_embeds: np.ndarray, kind: str) -> Any:
    rows, dim = image_embeds.shape
    lists = max(1, round(4 * rows**0.5))
    name = f"HNSW{_LINKS},Flat" if kind == "hnsw" else f"IVF{lists},Flat"
    index: Any = faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
    if kind == "hnsw":
        index.hnsw.efConstruction = _CONSTRUCTION
    else:
        index.cp.max_points_per_centroid = 64
        index.cp.min_points_per_centroid = 1  # no advice on standard output
        index.train(image_embeds)
    index.add(image_embeds)
    return index


def _tune(
    index: Any, kind: str, image_embeds: np.ndarray, text_embeds: np.ndarray, least_recall: float
) -> tuple[Searcher, float, float]:
    """The least effort that reaches the recall, and the recalls of pictures and of texts."""
    rows = len(image_embeds)
    own = np.sort(np.random.default_rng(0).permutation(rows)[:_QUERIES])
    pictures = image_embeds[own]
    best_pictures = exact.search(image_embeds, pictures, _K + 1)
    best_texts = exact.search(image_embeds, text_embeds, _K)
    effort, most = (16, 4096) if kind == "hnsw" else (1, index.nlist)
    while True:
        searcher = Searcher(index, kind, effort)
        of_pictures = recall(best_pictures, searcher.search(pictures, _K + 1), own)
        of_texts = recall(best_texts, searcher.search(text_embeds, _K))
        if min(of_pictures, of_texts) >= least_recall:
            return searcher, of_pictures, of_texts
        if effort >= most:
            raise ConfigError(
                f"approximate: recall@10 is {of_pictures:.3f} of pictures and {of_texts:.3f} of "
                f"texts at most, {least_recall} is wanted; lower least_recall, or stay with exact "
                "search"
            )
        effort = min(2 * effort, most)


def recall(best: Found, found: Found, own: np.ndarray | None = None) -> float:
    """Mean share of the 10 best that a search has found; rows of equal score count alike.

    Args:
      best: of each query, by exact search.
      found: of each query, by the other search.
      own: of each query the row that it is itself, which does not count.
    """
    shares = []
    for query in range(len(best)):
        (rows, scores), (others, theirs) = best[query], found[query]
        if own is not None:
            scores, theirs = scores[rows != own[query]], theirs[others != own[query]]
        scores, theirs = scores[:_K], theirs[:_K]
        shares.append(np.count_nonzero(theirs >= scores[-1] - _EQUAL) / len(scores))
    return float(np.mean(shares))


def _milliseconds(search: Callable[[np.ndarray], Any], queries: np.ndarray) -> float:
    """Median time of a search for one query."""
    spent = []
    for query in queries[:_TIMED, None]:
        start = time.perf_counter()
        search(query)
        spent.append(time.perf_counter() - start)
    return 1000 * statistics.median(spent) if spent else 0.0
