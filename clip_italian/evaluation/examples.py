"""Which queries a gallery shows: evenly spaced ones, or the best and the worst. Arrays only."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from clip_italian.evaluation import metrics

TOP = 5  # pictures shown for each query
_BLOCK_SCORES = 2**23  # scores held at a time


@dataclasses.dataclass(frozen=True)
class Example:
    """One query and what was found.

    Attributes:
      query: the caption.
      rank: of the right picture, from 1, ties counted against the model.
      found: indices of the best scored images, best first; the right one is last among its ties.
      scores: cosine of each of them with the query.
      right: index of the right image.
      right_score: its cosine.
    """

    query: str
    rank: int
    found: tuple[int, ...]
    scores: tuple[float, ...]
    right: int
    right_score: float


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Examples, and how they were chosen."""

    examples: tuple[Example, ...]
    rule: str


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What one model made of a set.

    Attributes:
      model: its name.
      image_embeds: float [images, dim].
      text_embeds: float [captions, dim].
      ranks: int [captions], of each caption's image, from 1; see `metrics.ranks`.
    """

    model: str
    image_embeds: np.ndarray
    text_embeds: np.ndarray
    ranks: np.ndarray


@dataclasses.dataclass(frozen=True)
class BestAndWorst:
    """What the first of several models does best and worst, and how the others do there.

    Attributes:
      models: their names; the first has chosen.
      best: for each query one `Example` of each model.
      worst: likewise.
      rule: how they were chosen, in words.
    """

    models: tuple[str, ...]
    best: tuple[tuple[Example, ...], ...]
    worst: tuple[tuple[Example, ...], ...]
    rule: str


def choose_examples(
    image_embeds: np.ndarray,
    text_embeds: np.ndarray,
    caption_image: np.ndarray,
    captions: Sequence[str],
    *,
    queries: int = 12,
) -> Gallery:
    """Half right and half wrong queries, evenly spaced in the order of the evaluation set.

    Args:
      image_embeds: float [images, dim].
      text_embeds: float [captions, dim].
      caption_image: int [captions], index of each caption's image.
      captions: [captions] text.
      queries: how many to show; when one kind has too few, the other fills up.

    Raises:
      ValueError: as `metrics.ranks`.
    """
    caption_image = np.asarray(caption_image)
    ranks = metrics.ranks(text_embeds, image_embeds, caption_image, np.arange(len(image_embeds)))
    right, wrong = np.flatnonzero(ranks == 1), np.flatnonzero(ranks > 1)
    n_right = min(len(right), max(queries // 2, queries - len(wrong)))
    n_wrong = min(len(wrong), queries - n_right)
    chosen = np.concatenate([_evenly(right, n_right), _evenly(wrong, n_wrong)])
    model = Embedded("", image_embeds, text_embeds, ranks)
    examples = tuple(_example(model, int(query), caption_image, captions) for query in chosen)
    rule = (
        f"{n_right} of the {len(right)} captions whose picture came first, then {n_wrong} of the "
        f"{len(wrong)} whose picture did not, each evenly spaced in the order of the evaluation "
        f"set, not picked by hand. First place: {100 * len(right) / len(ranks):.1f}% of "
        f"{len(ranks):,} captions, among {len(image_embeds):,} pictures."
    )
    return Gallery(examples, rule)


def best_and_worst(
    models: Sequence[Embedded],
    caption_image: np.ndarray,
    captions: Sequence[str],
    *,
    queries: int = 6,
) -> BestAndWorst:
    """The queries that the first model does best and worst, with what every model found.

    Best: rank 1 with the largest lead of the right picture's score over the next. Worst: the
    highest ranks. Each picture is asked for once at most; the set's order decides between equals.

    Args:
      models: one or more, of the same set.
      caption_image: int [captions], index of each caption's image.
      captions: [captions] text.
      queries: how many of each kind at most.

    Raises:
      ValueError: arrays do not fit the captions.
    """
    caption_image, first = np.asarray(caption_image), models[0]
    for one in models:
        if not len(one.ranks) == len(one.text_embeds) == len(captions) == len(caption_image):
            raise ValueError(
                f"{one.model}: {len(one.ranks)} ranks and {len(one.text_embeds)} text embeddings "
                f"for {len(captions)} captions of {len(caption_image)} places"
            )
    right, wrong = np.flatnonzero(first.ranks == 1), np.flatnonzero(first.ranks > 1)
    best = right[np.argsort(-_leads(first, right, caption_image), kind="stable")]
    worst = wrong[np.argsort(-first.ranks[wrong], kind="stable")]
    best, worst = (_one_per_image(order, caption_image)[:queries] for order in (best, worst))
    rule = (
        f"Chosen by the scores of {first.model}. Best: of the {len(right):,} captions whose "
        f"picture it puts first, the {len(best)} whose picture leads the next one by most. Worst: "
        f"of the {len(wrong):,} others, the {len(worst)} whose picture has the highest rank, "
        f"among {len(first.image_embeds):,} pictures. No picture is asked for twice."
    )
    shown = [
        tuple(tuple(_example(m, int(q), caption_image, captions) for m in models) for q in order)
        for order in (best, worst)
    ]
    return BestAndWorst(tuple(one.model for one in models), shown[0], shown[1], rule)


def _leads(model: Embedded, queries: np.ndarray, caption_image: np.ndarray) -> np.ndarray:
    """Score of the right image minus the best of the others, float [queries]."""
    leads = np.empty(len(queries))
    size = max(1, _BLOCK_SCORES // len(model.image_embeds))
    for start in range(0, len(queries), size):
        rows = queries[start : start + size]
        scores = model.text_embeds[rows] @ model.image_embeds.T
        place = np.arange(len(rows)), caption_image[rows]
        right = scores[place]
        scores[place] = -np.inf
        leads[start : start + size] = right - scores.max(axis=1)
    return leads


def _one_per_image(queries: np.ndarray, caption_image: np.ndarray) -> np.ndarray:
    """The first query of each image, in the order given."""
    return queries[np.sort(np.unique(caption_image[queries], return_index=True)[1])]


def _example(
    model: Embedded, query: int, caption_image: np.ndarray, captions: Sequence[str]
) -> Example:
    scores = model.image_embeds @ model.text_embeds[query]
    target, rank = int(caption_image[query]), int(model.ranks[query])
    others = np.argsort(-scores, kind="stable")
    others = others[others != target]
    # The right picture goes to its rank, so that picture and metric agree about ties.
    found = np.insert(others, rank - 1, target)[:TOP].tolist()
    found_scores = tuple(float(scores[image]) for image in found)
    return Example(captions[query], rank, tuple(found), found_scores, target, float(scores[target]))


def _evenly(items: np.ndarray, count: int) -> np.ndarray:
    return items[((np.arange(count) + 0.5) * len(items) / max(count, 1)).astype(int)]
