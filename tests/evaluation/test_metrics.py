"""Metrics against hand-worked examples and against a second implementation in plain Python."""

import tracemalloc

import numpy as np
import pytest

from clip_italian.evaluation import metrics


def brute_force(queries, candidates, query_group, candidate_group):
    """Ranks straight from the definition, one pair at a time."""
    found = []
    for query, group in zip(queries.tolist(), query_group.tolist(), strict=True):
        relevant, others = [], []
        for candidate, other in zip(candidates.tolist(), candidate_group.tolist(), strict=True):
            score = sum(a * b for a, b in zip(query, candidate, strict=True))
            (relevant if other == group else others).append(score)
        found.append(1 + sum(score >= max(relevant) for score in others))
    return found


def random_case(rng):
    """Embeddings of small whole numbers: exact in float32, with many ties."""
    images, dim = rng.integers(1, 9), rng.integers(1, 5)
    caption_image = np.concatenate([np.arange(images), rng.integers(0, images, rng.integers(0, 9))])
    rng.shuffle(caption_image)
    image_embeds = rng.integers(-2, 3, (images, dim)).astype(np.float32)
    text_embeds = rng.integers(-2, 3, (len(caption_image), dim)).astype(np.float32)
    return image_embeds, text_embeds, caption_image


def test_hand_worked_both_directions():
    # Scores, captions down, images across:
    #   caption 0 of image 0:  3  1  2   rank 1
    #   caption 1 of image 0:  1  2  0   rank 2
    #   caption 2 of image 1:  2  2  5   rank 3: the tie with image 0 counts against it
    #   caption 3 of image 2:  0  0  1   rank 1
    image_embeds = np.eye(3, dtype=np.float32)
    text_embeds = np.array([[3, 1, 2], [1, 2, 0], [2, 2, 5], [0, 0, 1]], np.float32)
    values = metrics.retrieval_metrics(image_embeds, text_embeds, np.array([0, 0, 1, 2]))
    assert values == {
        "text_to_image/R@1": 0.5,
        "text_to_image/R@5": 1.0,
        "text_to_image/R@10": 1.0,
        "text_to_image/MRR@1": 0.5,
        "text_to_image/MRR@5": pytest.approx((1 + 1 / 2 + 1 / 3 + 1) / 4, abs=1e-15),
        "text_to_image/MRR@10": pytest.approx((1 + 1 / 2 + 1 / 3 + 1) / 4, abs=1e-15),
        "text_to_image/median_rank": 1.5,
        # Image 0: best own caption 3, others 2 and 0: rank 1. Image 1: own 2, others 1 2 0: rank 2.
        # Image 2: own 1, others 2 0 5: rank 3.
        "image_to_text/R@1": pytest.approx(1 / 3, abs=1e-15),
        "image_to_text/R@5": 1.0,
        "image_to_text/R@10": 1.0,
        "image_to_text/MRR@1": pytest.approx(1 / 3, abs=1e-15),
        "image_to_text/MRR@5": pytest.approx((1 + 1 / 2 + 1 / 3) / 3, abs=1e-15),
        "image_to_text/MRR@10": pytest.approx((1 + 1 / 2 + 1 / 3) / 3, abs=1e-15),
        "image_to_text/median_rank": 2.0,
    }
    assert tuple(values) == metrics.RETRIEVAL_METRICS


def test_recall_mrr_and_median_of_given_ranks():
    ranks = np.array([1, 2, 6, 5, 100])
    assert metrics.recall_at_k(ranks, 1) == 0.2
    assert metrics.recall_at_k(ranks, 5) == 0.6
    # The paper's MRR@5: (1 + 1/2 + 0 + 1/5 + 0) / 5.
    assert metrics.mrr_at_k(ranks, 5) == pytest.approx(0.34, abs=1e-15)
    assert metrics.mrr_at_k(ranks, 10) == pytest.approx((1 + 1 / 2 + 1 / 6 + 1 / 5) / 5, abs=1e-15)
    assert metrics.median_rank(ranks) == 5.0
    assert metrics.median_rank(np.array([1, 2])) == 1.5


def test_ranks_equal_brute_force_on_random_cases_with_ties():
    rng = np.random.default_rng(0)
    ties = 0
    for _ in range(300):
        image_embeds, text_embeds, caption_image = random_case(rng)
        images = np.arange(len(image_embeds))
        for args in (
            (text_embeds, image_embeds, caption_image, images),
            (image_embeds, text_embeds, images, caption_image),
        ):
            expected = brute_force(*args)
            assert metrics.ranks(*args).tolist() == expected
        scores = text_embeds @ image_embeds.T
        ties += sum(len(set(row)) < len(row) for row in scores.tolist())
    assert ties > 500


def test_values_equal_brute_force_to_1e_12():
    rng = np.random.default_rng(1)
    for _ in range(100):
        image_embeds, text_embeds, caption_image = random_case(rng)
        images = np.arange(len(image_embeds))
        values = metrics.retrieval_metrics(image_embeds, text_embeds, caption_image)
        for direction, args in {
            "text_to_image": (text_embeds, image_embeds, caption_image, images),
            "image_to_text": (image_embeds, text_embeds, images, caption_image),
        }.items():
            ranks = brute_force(*args)
            for k in (1, 5, 10):
                recall = sum(rank <= k for rank in ranks) / len(ranks)
                mrr = sum(1 / rank if rank <= k else 0 for rank in ranks) / len(ranks)
                assert abs(values[f"{direction}/R@{k}"] - recall) < 1e-12
                assert abs(values[f"{direction}/MRR@{k}"] - mrr) < 1e-12
            middle = sorted(ranks)
            median = (middle[(len(ranks) - 1) // 2] + middle[len(ranks) // 2]) / 2
            assert abs(values[f"{direction}/median_rank"] - median) < 1e-12


def test_several_blocks_equal_one(monkeypatch):
    rng = np.random.default_rng(2)
    queries = rng.integers(-3, 4, (101, 3)).astype(np.float32)
    candidates = rng.integers(-3, 4, (57, 3)).astype(np.float32)
    groups = rng.integers(0, 57, 101), np.arange(57)
    expected = brute_force(queries, candidates, *groups)
    assert metrics.ranks(queries, candidates, *groups).tolist() == expected
    monkeypatch.setattr(metrics, "_BLOCK_SCORES", 57 * 20)  # blocks of 20: five and a tail of one
    assert metrics.ranks(queries, candidates, *groups).tolist() == expected


@pytest.mark.parametrize("queries", [1, 5, 40])
@pytest.mark.parametrize("candidates", [5, 37, 501])
@pytest.mark.parametrize("dim", [128, 512])
def test_a_collapsed_model_ranks_last(queries, candidates, dim):
    # Equal rows must tie wherever they stand; a plain matrix product rounds some differently.
    rng = np.random.default_rng(3)
    row = rng.standard_normal(dim).astype(np.float32)
    embeds = np.tile(row / np.linalg.norm(row), (candidates, 1))
    query_embeds = rng.standard_normal((queries, dim)).astype(np.float32)
    groups = np.arange(queries) % candidates, np.arange(candidates)
    assert set(metrics.ranks(query_embeds, embeds, *groups).tolist()) == {candidates}


def test_equal_rows_are_scored_once():
    rows = np.array([[1, 2], [0.0, 3], [1, 2], [-0.0, 3], [1, 3]], np.float32)
    distinct, copy_of = metrics._distinct_rows(rows)
    assert distinct.tolist() == [[1, 2], [0, 3], [1, 3]]
    assert copy_of.tolist() == [0, 1, 0, 1, 2]


def test_memory_does_not_grow_with_queries_times_candidates(monkeypatch):
    monkeypatch.setattr(metrics, "_BLOCK_SCORES", 2**16)
    rng = np.random.default_rng(4)
    embeds = rng.standard_normal((2000, 8)).astype(np.float32)  # whole matrix: 16 MB
    groups = np.arange(2000)
    tracemalloc.start()
    try:
        metrics.ranks(embeds, embeds, groups, groups)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_an_error(bad):
    good = np.eye(3, dtype=np.float32)
    broken = good.copy()
    broken[1, 2] = bad
    for image_embeds, text_embeds in ((broken, good), (good, broken)):
        with pytest.raises(ValueError, match=r"1 of 3 .* not finite, the first in row 1"):
            metrics.retrieval_metrics(image_embeds, text_embeds, np.arange(3))


def test_a_score_that_overflows_to_nan_ranks_last():
    candidates = np.array([[1e30, -1e30], [0, 0], [0, 0]], np.float32)
    query = np.array([[1e30, 1e30]], np.float32)  # inf - inf
    with np.errstate(all="ignore"):
        assert metrics.ranks(query, candidates, np.array([0]), np.arange(3)).tolist() == [3]


def test_bad_input_is_named():
    two, three = np.eye(2, dtype=np.float32), np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match=r"1 of 2 queries .* query 1 of group 5"):
        metrics.ranks(two, two, np.array([0, 5]), np.arange(2))
    with pytest.raises(ValueError, match="one width, found 2 and 3"):
        metrics.ranks(two, three, np.arange(2), np.arange(3))
    with pytest.raises(ValueError, match=r"found \(2, 2\) and groups \(3,\)"):
        metrics.ranks(two, three, np.arange(3), np.arange(3))
    with pytest.raises(ValueError, match="at least one row"):
        metrics.ranks(np.zeros((0, 2)), two, np.arange(0), np.arange(2))
    with pytest.raises(ValueError, match=r"1 of 3 queries .* group 2"):  # image 2 has no caption
        metrics.retrieval_metrics(three, three, np.array([0, 1, 1]))
