"""Two models on the same data: paired tests; several seeds of a model: mean and deviation."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_italian.config import ConfigError
from clip_italian.evaluation import metrics, statistics
from clip_italian.evaluation.tasks import Outcome

# Metric → its value for one query, from the query's rank.
_FROM_RANK: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "R@1": lambda ranks: (ranks <= 1).astype(float),
    "MRR@10": lambda ranks: np.where(ranks <= 10, 1 / ranks, 0.0),
    "acc@1": lambda ranks: (ranks <= 1).astype(float),
    "acc@5": lambda ranks: (ranks <= 5).astype(float),
}
Key = tuple[str, str, str]  # set, task, variant


def paired_tests(
    a: Sequence[Sequence[Outcome]], b: Sequence[Sequence[Outcome]], *, resamples: int
) -> list[dict[str, Any]]:
    """What b gains over a on every set that both have, with interval and p-value.

    Of several seeds, a query counts with its mean over them, so the test is about the test images
    only; how far seeds differ is told by `over_seeds`.

    Args:
      a: for each seed of one model, its outcomes.
      b: likewise of the other.
      resamples: of bootstrap and permutation.

    Returns:
      One dict for each set, task and metric: set, task, variant, metric, a, b (names), seeds_a,
      seeds_b, difference (b - a), low, high, p_value.

    Raises:
      ConfigError: a set has one name and different data or prompts, a seed lacks a set, ranks are
        missing, or the models share no set.
    """
    ours, theirs = _by_key(a), _by_key(b)
    shared = [key for key in ours if key in theirs]
    if not shared:
        raise ConfigError(
            f"compare: the reports share no set; found {sorted({key[0] for key in ours})} and "
            f"{sorted({key[0] for key in theirs})}"
        )
    found = []
    for key in shared:
        both = [*ours[key], *theirs[key]]
        _check_same_question(key, both)
        if key[1] != "contrast" and not all(one.items for one in both):
            raise ConfigError(
                f"compare: a report lacks the ranks of {' '.join(filter(None, key))} (items.npz); "
                "evaluate again"
            )
        for name, first, second, cluster in _values(ours[key], theirs[key]):
            test = statistics.paired_test(second, first, cluster, resamples=resamples)
            found.append(
                {
                    "set": key[0],
                    "task": key[1],
                    "variant": key[2],
                    "metric": name,
                    "a": _name(ours[key]),
                    "b": _name(theirs[key]),
                    "seeds_a": len(ours[key]),
                    "seeds_b": len(theirs[key]),
                    "difference": test.difference,
                    "low": test.low,
                    "high": test.high,
                    "p_value": test.p_value,
                }
            )
    return found


def over_seeds(outcomes: Sequence[Sequence[Outcome]]) -> list[dict[str, Any]]:
    """Mean and standard deviation (n - 1) of every metric over the seeds of one model.

    Args:
      outcomes: for each seed, its outcomes; one seed alone gives nothing.

    Raises:
      ConfigError: a seed lacks a set, or saw other data.
    """
    found = []
    for key, seeds in _by_key(outcomes).items() if len(outcomes) > 1 else ():
        _check_same_question(key, seeds)
        for metric in seeds[0].result.metrics:
            mean, deviation = statistics.seeds([one.result.metrics[metric] for one in seeds])
            found.append(
                {
                    "model": _name(seeds),
                    "set": key[0],
                    "task": key[1],
                    "variant": key[2],
                    "metric": metric,
                    "mean": mean,
                    "sd": deviation,
                    "seeds": len(seeds),
                }
            )
    return found


def _name(seeds: Sequence[Outcome]) -> str:
    first, more = seeds[0].result.model, len(seeds) - 1
    return first if not more else f"{first} and {more} more seed{'s' if more > 1 else ''}"


def _by_key(outcomes: Sequence[Sequence[Outcome]]) -> dict[Key, list[Outcome]]:
    """One outcome of every seed; raises `ConfigError` where a seed lacks one."""
    found: dict[Key, list[Outcome]] = {}
    for seed in outcomes:
        for one in seed:
            result = one.result
            found.setdefault((result.set, result.task, result.variant), []).append(one)
    for key, seeds in found.items():
        if len(seeds) != len(outcomes):
            raise ConfigError(
                f"compare: {' '.join(filter(None, key))} is in {len(seeds)} of the {len(outcomes)} "
                "reports of one model; evaluate all seeds on the same sets"
            )
    return found


def _check_same_question(key: Key, outcomes: Sequence[Outcome]) -> None:
    """Raises `ConfigError` unless all saw the same images, texts, prompts and training images."""
    asked = [
        (
            one.result.data_fingerprint,
            *map(one.result.details.get, ("prompts", "train_fingerprint")),
        )
        for one in outcomes
    ]
    if len(set(asked)) > 1:
        what = next(
            name
            for name, values in zip(
                ("data", "class names and prompts", "training images of the probe"),
                zip(*asked, strict=True),
                strict=True,
            )
            if len(set(values)) > 1
        )
        raise ConfigError(
            f"compare: the {what} of {' '.join(filter(None, key))} are not the same in all "
            "reports; evaluate all models on one copy"
        )


def _values(
    ours: Sequence[Outcome], theirs: Sequence[Outcome]
) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(metric, a's value for each query, b's, the query's image), queries in the same order."""
    found = []
    if "ranks" in ours[0].items:
        parts = [("ranks", f"{ours[0].result.task}/", ("acc@1", "acc@5"), None)]
    else:
        parts = [
            (direction, f"{direction}/", ("R@1", "MRR@10"), f"{direction}/cluster")
            for direction in metrics.DIRECTIONS
            if direction in ours[0].items
        ]
    for array, prefix, names, clusters in parts:
        ranks = ours[0].items[array]
        cluster = np.arange(len(ranks)) if clusters is None else ours[0].items[clusters]
        for name in names:
            if prefix + name in ours[0].result.metrics:
                of = _FROM_RANK[name]
                first, second = (
                    np.mean([of(one.items[array]) for one in side], axis=0)
                    for side in (ours, theirs)
                )
                found.append((prefix + name, first, second, cluster))
    return found
