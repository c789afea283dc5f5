"""How sure a metric is: bootstrap intervals, a paired test, spread over seeds. Arrays only.

Queries of one image are no independent evidence, so that whole clusters are drawn: an image with
all its captions. What is drawn are the test queries; the pool of candidates, and with it each
query's rank, stays as it was, and so do the models, whose spread only several seeds of training
show.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

LEVEL = 0.95
_BATCH = 16  # resamples held at a time: memory is this times the number of clusters

Intervals = dict[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two models on the same queries.

    Attributes:
      difference: mean of the first model's values minus the second's.
      low: lower end of the 95% interval of the difference.
      high: its upper end.
      p_value: two-sided, of the hypothesis that the models are exchangeable in each cluster.
    """

    difference: float
    low: float
    high: float
    p_value: float


def intervals(
    ranks: np.ndarray,
    clusters: np.ndarray,
    *,
    ks: Sequence[int] = (1, 5, 10),
    resamples: int = 2000,
    seed: int = 0,
) -> Intervals:
    """95% percentile bootstrap intervals of R@k, MRR@k and the median rank, from one set of draws.

    Args:
      ranks: int [queries], from 1.
      clusters: int [queries], which image a query belongs to; any numbers.
      ks: of R@k and MRR@k.
      resamples: number of draws of as many clusters as there are.
      seed: of the draws.

    Returns:
      {"R@1": (low, high), ..., "MRR@1": ..., "median_rank": ...}.

    Raises:
      ValueError: shapes do not fit, a rank is below 1, or there are fewer than two clusters.
    """
    ranks, cluster = _checked(_as_ranks(ranks), clusters)
    columns = {f"R@{k}": ranks <= k for k in ks}
    columns |= {f"MRR@{k}": np.where(ranks <= k, 1 / ranks, 0.0) for k in ks}
    means = _means(list(columns.values()), cluster)
    order = np.argsort(ranks, kind="stable")
    rising, rising_cluster = ranks[order], cluster[order]

    def statistic(draws: np.ndarray) -> np.ndarray:
        medians = [_median(rising, draw[rising_cluster]) for draw in draws]
        return np.vstack([means(draws), medians])

    bounds = _percentiles(statistic, cluster.max() + 1, resamples, seed)
    return dict(zip([*columns, "median_rank"], bounds, strict=True))


def accuracy_intervals(
    ranks: np.ndarray,
    ks: Sequence[int] = (1, 5, 10, 100),
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Intervals:
    """95% percentile bootstrap intervals of top-k accuracy over images, as `intervals`.

    Args:
      ranks: int [images], rank of each image's class, from 1.
      ks: numbers of guesses.
      resamples: number of draws of as many images as there are.
      seed: of the draws.

    Returns:
      {"acc@1": (low, high), ...}.
    """
    ranks, image = _checked(_as_ranks(ranks), np.arange(len(ranks)))
    means = _means([ranks <= k for k in ks], image)
    bounds = _percentiles(means, len(ranks), resamples, seed)
    return dict(zip([f"acc@{k}" for k in ks], bounds, strict=True))


def paired_test(
    values_a: np.ndarray,
    values_b: np.ndarray,
    clusters: np.ndarray,
    *,
    resamples: int = 5000,
    seed: int = 0,
) -> Paired:
    """Whether two models differ on the same queries, clusters taken as a whole.

    The p-value is that of a sign-flip permutation test on the clusters' summed differences: exact
    when all flips are no more than `resamples`, else drawn, and then at least 1 / (resamples + 1).

    Args:
      values_a: float [queries], a value of the first model for each query, e.g. `ranks <= 1`.
      values_b: float [queries], of the second model, in the same order.
      clusters: int [queries], which image a query belongs to; any numbers.
      resamples: number of draws, both of the test and of the interval.
      seed: of the draws.

    Raises:
      ValueError: shapes do not fit, a value is not finite, or there are fewer than two clusters.
    """
    values_a, values_b = np.asarray(values_a, np.float64), np.asarray(values_b, np.float64)
    if values_a.shape != values_b.shape:
        raise ValueError(
            f"a paired test needs the same queries, found values {values_a.shape} and "
            f"{values_b.shape}"
        )
    difference, cluster = _checked(values_a - values_b, clusters)
    bad = np.flatnonzero(~np.isfinite(difference))
    if len(bad):
        raise ValueError(f"{len(bad)} values are not finite, the first of query {bad[0]}")
    means = _means([difference], cluster)
    ((low, high),) = _percentiles(means, cluster.max() + 1, resamples, seed)
    p_value = _sign_flip_p(np.bincount(cluster, difference), resamples, seed)
    return Paired(float(difference.mean()), low, high, p_value)


def seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1 in the denominator) of one metric over training seeds.

    Raises:
      ValueError: fewer than two values, or one that is not finite.
    """
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or len(found) < 2 or not np.isfinite(found).all():
        raise ValueError(f"a spread needs the finite values of two seeds or more, found {values}")
    return float(found.mean()), float(found.std(ddof=1))


def _as_ranks(ranks: np.ndarray) -> np.ndarray:
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or not np.issubdtype(ranks.dtype, np.integer) or (ranks < 1).any():
        raise ValueError(
            f"ranks must be whole numbers from 1, [queries], found {ranks.dtype} {ranks.shape}"
            + (f" from {ranks.min()}" if ranks.size else "")
        )
    return ranks


def _checked(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values as they are, and clusters numbered from 0 without a gap."""
    if values.ndim != 1 or np.shape(clusters) != values.shape:
        raise ValueError(
            f"every query needs one value and one cluster, found {values.shape} and "
            f"{np.shape(clusters)}"
        )
    names, cluster = np.unique(clusters, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"a bootstrap needs at least two clusters (images), found {len(names)}")
    return values, cluster


def _means(
    columns: Sequence[np.ndarray], cluster: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Draws int [batch, clusters] (how often each is in) → query means [columns, batch]."""
    table = np.stack([np.bincount(cluster, column) for column in columns], axis=1)
    size = np.bincount(cluster).astype(np.float64)

    def statistic(draws: np.ndarray) -> np.ndarray:
        draws = draws.astype(np.float64)
        return (draws @ table).T / (draws @ size)

    return statistic


def _median(ranks: np.ndarray, times: np.ndarray) -> float:
    """Median of rising ranks, each repeated so many times."""
    upto = np.cumsum(times)
    middle = [(upto[-1] - 1) // 2, upto[-1] // 2]
    return float(ranks[np.searchsorted(upto, middle, side="right")].mean())


def _percentiles(
    statistic: Callable[[np.ndarray], np.ndarray], clusters: int, resamples: int, seed: int
) -> list[tuple[float, float]]:
    """Intervals of a statistic: draws int [batch, clusters] → [values, batch].

    The draws and percentiles of `scipy.stats.bootstrap`, without what importing it takes.
    """
    rng, values = np.random.default_rng(seed), []
    for batch in _batches(resamples):
        chosen = rng.integers(0, clusters, (batch, clusters))
        draws = np.stack([np.bincount(row, minlength=clusters) for row in chosen])
        values.append(statistic(draws))
    tails = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
    low, high = np.percentile(np.concatenate(values, axis=1), tails, axis=1)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _sign_flip_p(sums: np.ndarray, resamples: int, seed: int) -> float:
    """Two-sided p-value of a sum under random signs of its terms.

    As `scipy.stats.permutation_test` with permutation_type="samples", which takes minutes for
    50,000 clusters.
    """
    observed, sums = abs(sums.sum()), sums[sums != 0]
    least = observed * (1 - 1e-12)  # the same terms added in another order round otherwise
    if 2 ** len(sums) <= resamples:
        flips = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        return float(np.mean(np.abs((1 - 2 * flips) @ sums) >= least))
    rng, extreme = np.random.default_rng(seed), 0
    for batch in _batches(resamples):
        flips = rng.integers(0, 2, (batch, len(sums)), dtype=bool)
        extreme += np.count_nonzero(np.abs(sums.sum() - 2 * (flips @ sums)) >= least)
    return float((extreme + 1) / (resamples + 1))


def _batches(resamples: int) -> Iterator[int]:
    """How many to hold at a time."""
    for start in range(0, resamples, _BATCH):
        yield min(_BATCH, resamples - start)
