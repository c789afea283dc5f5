"""Intervals and tests against scipy, against the definition, and against a known truth."""

import re
import time
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from clip_italian.evaluation import metrics, statistics

UNCLUSTERED = np.arange(12)


def captions(rng, images=9):
    """Ranks of one to four captions an image, with many ties, in no order of the images."""
    clusters = np.repeat(rng.permutation(images) * 7, rng.integers(1, 5, images))
    rng.shuffle(clusters)
    return rng.integers(1, 15, len(clusters)), clusters


def drawn_by_hand(values, clusters, statistic, resamples, seed):
    """The definition: whole clusters drawn with scipy's draws, queries put together, percentiles.

    values: [queries] or [queries, columns]; statistic: such rows → {name: value}.
    """
    members = [values[clusters == name] for name in np.unique(clusters)]

    def of_draw(chosen):
        return list(statistic(np.concatenate([members[i] for i in chosen])).values())

    found = stats.bootstrap(
        (np.arange(len(members)),),
        of_draw,
        n_resamples=resamples,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    names = statistic(values)
    return {name: pair for name, *pair in zip(names, found.low, found.high, strict=True)}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, pair in expected.items():
        np.testing.assert_allclose(found[name], pair, rtol=0, atol=1e-12, err_msg=name)


def test_intervals_equal_scipy_on_whole_clusters():
    rng = np.random.default_rng(0)
    for seed in range(3):
        ranks, clusters = captions(rng)
        expected = drawn_by_hand(ranks, clusters, metrics.summary, resamples=200, seed=seed)
        assert tuple(expected) == metrics.SUMMARY
        found = statistics.intervals(ranks, clusters, ks=metrics.KS, resamples=200, seed=seed)
        assert_same(found, expected)


def test_accuracy_intervals_equal_scipy_with_images_as_clusters():
    ranks = np.random.default_rng(1).integers(1, 200, 31)

    def accuracies(ranks):
        return {f"acc@{k}": metrics.recall_at_k(ranks, k) for k in (1, 5, 10, 100)}

    expected = drawn_by_hand(ranks, np.arange(31), accuracies, resamples=300, seed=5)
    assert_same(statistics.accuracy_intervals(ranks, resamples=300, seed=5), expected)
    (name,) = statistics.accuracy_intervals(ranks, (3,), resamples=20)
    assert name == "acc@3"


def test_intervals_by_hand_of_two_images():
    # Each image is drawn twice with chance 1/4, so that both extremes lie outside the middle 95%
    # only with more draws than these; image 0 has ranks 1 and 1, image 1 has 4, 8 and 12.
    ranks, clusters = np.array([4, 1, 8, 1, 12]), np.array([1, 0, 1, 0, 1])
    found = statistics.intervals(ranks, clusters, resamples=500)
    assert found["R@1"] == (0.0, 1.0)
    assert found["R@5"] == pytest.approx((1 / 3, 1.0), abs=1e-12)
    assert found["MRR@10"] == pytest.approx(((1 / 4 + 1 / 8) / 3, 1.0), abs=1e-12)
    assert found["median_rank"] == (1.0, 8.0)


def test_draws_depend_on_the_seed():
    ranks, clusters = captions(np.random.default_rng(2), images=40)
    one, same, other = (statistics.intervals(ranks, clusters, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    one, same, other = (
        statistics.paired_test(ranks <= 7, ranks % 2, clusters, seed=seed).p_value
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_paired_interval_equals_scipy_on_whole_clusters():
    rng = np.random.default_rng(3)
    ranks_a, clusters = captions(rng, images=20)
    ranks_b = rng.integers(1, 15, len(ranks_a))
    values = np.stack([1 / ranks_a, 1 / ranks_b], axis=1)

    def difference(rows):
        return {"difference": rows[:, 0].mean() - rows[:, 1].mean()}

    expected = drawn_by_hand(values, clusters, difference, resamples=300, seed=4)
    found = statistics.paired_test(*values.T, clusters, resamples=300, seed=4)
    assert_same({"difference": (found.low, found.high)}, expected)
    assert found.difference == pytest.approx(difference(values)["difference"], abs=1e-15)


@pytest.mark.parametrize("values", ["right or wrong", "reciprocal ranks"])
def test_few_clusters_give_the_exact_p_of_scipy(values):
    rng = np.random.default_rng(4)
    for _ in range(20):
        ranks_a, clusters = captions(rng, images=9)
        ranks_b = np.maximum(1, ranks_a + rng.integers(-3, 6, len(ranks_a)))
        a, b = (
            ((r <= 5).astype(float) if values == "right or wrong" else 1 / r)
            for r in (ranks_a, ranks_b)
        )
        sums = np.bincount(clusters // 7, a - b)
        expected = stats.permutation_test(
            (sums,), np.sum, permutation_type="samples", n_resamples=np.inf
        ).pvalue
        found = statistics.paired_test(a, b, clusters, resamples=512).p_value
        assert found == pytest.approx(expected, abs=1e-12)


def test_p_values_by_hand():
    first, second = np.ones(12), np.zeros(12)
    # Twelve images, all for the first model: two of 4,096 signs are as extreme.
    assert statistics.paired_test(first, second, UNCLUSTERED).p_value == 2 / 4096
    # The same queries as three images of four captions: two of eight.
    assert statistics.paired_test(first, second, UNCLUSTERED // 4).p_value == 2 / 8
    # Alike in all but two images, one for each: nothing to tell them apart.
    first = np.array([1.0, 0] + [1] * 10)
    second = np.array([0.0, 1] + [1] * 10)
    result = statistics.paired_test(first, second, UNCLUSTERED)
    assert (result.difference, result.p_value) == (0.0, 1.0)
    assert statistics.paired_test(first, first, UNCLUSTERED).p_value == 1.0
    # Of a hundred images only three differ: two of eight signs, and none has to be drawn.
    result = statistics.paired_test(np.arange(100) < 3, np.zeros(100), np.arange(100))
    assert (result.difference, result.p_value) == (pytest.approx(0.03, abs=1e-15), 2 / 8)


def test_drawn_p_values_are_near_the_exact_ones_and_never_zero():
    rng = np.random.default_rng(5)
    for shift in (0.0, 0.3, 0.6):
        difference = rng.standard_normal(14) + shift
        exact = statistics.paired_test(difference, np.zeros(14), np.arange(14), resamples=2**14)
        drawn = statistics.paired_test(difference, np.zeros(14), np.arange(14), resamples=2**14 - 1)
        spread = np.sqrt(exact.p_value * (1 - exact.p_value) / 2**14)
        assert drawn.p_value != exact.p_value
        assert abs(drawn.p_value - exact.p_value) < 4 * spread + 1 / 2**14
    clear = statistics.paired_test(np.ones(100), np.zeros(100), np.arange(100), resamples=199)
    assert clear.p_value == 1 / 200
    # Five wins and five losses among a hundred images that are alike: all draws are as extreme.
    even = np.repeat([1.0, -1.0, 0.0], [5, 5, 90])
    drawn = statistics.paired_test(even, 0 * even, np.arange(100), resamples=199)
    assert drawn.p_value == 1.0


def test_two_models_are_compared_in_both_directions():
    rng = np.random.default_rng(6)
    a, clusters = captions(rng, images=30)
    b = rng.integers(1, 15, len(a))
    one, other = (
        statistics.paired_test(x, y, clusters, resamples=500) for x, y in ((a, b), (b, a))
    )
    assert one.p_value == pytest.approx(other.p_value, abs=0.02)
    np.testing.assert_allclose(
        [one.difference, one.low, one.high], [-other.difference, -other.high, -other.low], rtol=1e-9
    )


def test_seeds():
    mean, deviation = statistics.seeds([0.2, 0.5, 0.8])
    assert (mean, deviation) == pytest.approx((0.5, 0.3), abs=1e-15)
    for bad in ([0.2], [], [0.2, float("nan")], 0.2):
        with pytest.raises(ValueError, match=r"two seeds or more, found " + re.escape(str(bad))):
            statistics.seeds(bad)


def test_bad_input_is_named():
    ranks, clusters = np.array([1, 2, 3]), np.array([0, 0, 1])
    with pytest.raises(ValueError, match=r"one value and one cluster, found \(3,\) and \(2,\)"):
        statistics.intervals(ranks, clusters[:2])
    with pytest.raises(ValueError, match="at least two clusters .* found 1"):
        statistics.intervals(ranks, np.zeros(3))
    with pytest.raises(ValueError, match="at least two clusters .* found 0"):
        statistics.intervals(ranks[:0], clusters[:0])
    with pytest.raises(ValueError, match=r"whole numbers from 1, .* int64 \(3,\) from 0"):
        statistics.intervals(ranks - 1, clusters)
    with pytest.raises(ValueError, match=r"whole numbers from 1, .* float64 \(3,\)"):
        statistics.accuracy_intervals(1 / ranks)
    with pytest.raises(ValueError, match=r"same queries, found values \(3,\) and \(2,\)"):
        statistics.paired_test(ranks, ranks[:2], clusters)
    with pytest.raises(ValueError, match="1 values are not finite, the first of query 2"):
        statistics.paired_test(ranks, np.array([1, 2, np.nan]), clusters)


LATER = sum(1 / rank for rank in range(2, 11)) / 29  # mean of 1/rank up to 10 over ranks 2 to 30


def simulated(rng, images, mean, correlation):
    """Ranks of one to seven captions an image: some images are hard, and those have more.

    An image's chance of rank 1 is drawn from a beta distribution, so that two of its captions
    correlate by `correlation`; a caption that is not first is anywhere from 2 to 30.

    Returns:
      ranks, clusters, and the true {"R@1": ..., "MRR@10": ...} of all captions that could be drawn.
    """
    spread = 1 / correlation - 1
    chance = rng.beta(mean * spread, (1 - mean) * spread, images)
    clusters = np.repeat(np.arange(images), 1 + rng.binomial(6, 1 - chance))
    first = rng.random(len(clusters)) < chance[clusters]
    ranks = np.where(first, 1, rng.integers(2, 31, len(clusters)))
    # Captions of an image: 1 + 6 (1 - chance) on average; weighted by them, its chance.
    square = mean**2 + correlation * mean * (1 - mean)
    truth = (7 * mean - 6 * square) / (7 - 6 * mean)
    return ranks, clusters, {"R@1": truth, "MRR@10": truth + (1 - truth) * LATER}


def covered(data_sets, images, mean, correlation, resamples):
    """Share of simulated data sets whose interval contains the truth."""
    rng, hits = np.random.default_rng(7), dict.fromkeys(("R@1", "MRR@10"), 0)
    for seed in range(data_sets):
        ranks, clusters, truth = simulated(rng, images, mean, correlation)
        found = statistics.intervals(ranks, clusters, ks=(1, 10), resamples=resamples, seed=seed)
        for name in hits:
            hits[name] += found[name][0] <= truth[name] <= found[name][1]
    return {name: count / data_sets for name, count in hits.items()}


def test_the_simulation_knows_its_truth():
    ranks, _, truth = simulated(np.random.default_rng(8), 200_000, mean=0.4, correlation=0.5)
    assert metrics.recall_at_k(ranks, 1) == pytest.approx(truth["R@1"], abs=0.003)
    assert metrics.mrr_at_k(ranks, 10) == pytest.approx(truth["MRR@10"], abs=0.003)
    assert truth["R@1"] < 0.35


def test_intervals_cover_the_truth_roughly():
    # 200 data sets: 95% give or take 1.5%. Captions drawn one by one would cover 80%.
    share = covered(200, images=150, mean=0.5, correlation=0.5, resamples=300)
    assert min(share.values()) > 0.9 and max(share.values()) < 0.985, share


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("correlation", [0.1, 0.5])
def test_intervals_cover_the_truth(mean, correlation):
    share = covered(1000, images=400, mean=mean, correlation=correlation, resamples=1000)
    print(f"chance {mean}, correlation {correlation}: {share}")
    assert all(0.93 <= value <= 0.97 for value in share.values()), share


@pytest.mark.slow
def test_paired_interval_covers_and_p_values_are_uniform():
    rng = np.random.default_rng(9)
    data_sets, covers, rejected = 1000, 0, 0
    for seed in range(data_sets):
        ranks, clusters, _ = simulated(rng, 400, mean=0.5, correlation=0.5)
        # The other model guesses anew at three captions in ten; which of the two is called the
        # first is then drawn for each image, so that they are exchangeable.
        a = (ranks == 1).astype(float)
        b = np.where(rng.random(len(a)) < 0.3, rng.random(len(a)) < 0.5, a)
        swap = (rng.random(400) < 0.5)[clusters]
        a, b = np.where(swap, b, a), np.where(swap, a, b)
        result = statistics.paired_test(a, b, clusters, resamples=1000, seed=seed)
        covers += result.low <= 0 <= result.high
        rejected += result.p_value <= 0.05
    print(f"covered {covers / data_sets}, rejected {rejected / data_sets}")
    assert 0.93 <= covers / data_sets <= 0.97
    assert 0.03 <= rejected / data_sets <= 0.07


@pytest.mark.slow
def test_fifty_thousand_images_are_feasible():
    clusters = np.repeat(np.arange(50_000), 5)
    ranks = np.random.default_rng(10).geometric(0.02, len(clusters))
    start = time.process_time()  # not by the clock: other work may share the processors
    statistics.intervals(ranks, clusters)
    seconds = time.process_time() - start
    tracemalloc.start()
    try:
        statistics.intervals(ranks, clusters, resamples=50)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"{seconds:.1f} s, {peak / 1e6:.0f} MB")
    assert seconds < 30 and peak < 1e9
