"""Metrics against hand-worked examples and against a second implementation in plain Python."""

import jax
import jax.numpy as jnp
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
    images, dim = rng.integers(1, 9), rng.choice([1, 3])
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


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("queries", [1, 33, 500])
def test_calls_blocks_and_devices_do_not_matter(monkeypatch, devices, queries):
    rng = np.random.default_rng(2)
    args = (
        rng.integers(-3, 4, (queries, 3)).astype(np.float32),
        rng.integers(-3, 4, (57, 3)).astype(np.float32),
        rng.integers(0, 20, queries),
        np.concatenate([np.arange(20), rng.integers(0, 20, 37)]),
    )
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:devices])
    # A device takes 32 queries a call and 16 at a time: the last call and block are not full.
    monkeypatch.setattr(metrics, "_CALL_QUERIES", 32)
    monkeypatch.setattr(metrics, "_BLOCK_QUERIES", (16, 16))
    assert metrics.ranks(*args).tolist() == brute_force(*args)


@pytest.mark.parametrize(("queries", "devices"), [(16, 1), (40, 3), (1000, 8)])
def test_queries_are_dealt_to_all_devices(monkeypatch, queries, devices):
    seen = []
    real = metrics._call_ranks
    monkeypatch.setattr(metrics, "_call_ranks", lambda *args: seen.append(args) or real(*args))
    metrics.ranks(np.ones((queries, 1)), np.ones((1, 1)), np.zeros(queries), np.zeros(1))
    ((mesh, block, blocks, asked, _),) = seen
    assert mesh.size == devices
    assert asked[0].shape == (128 if queries == 1000 else 16, devices, 1)
    # Alike but for one: no device waits, and none has only padding.
    dealt = asked[0].sum(axis=(0, 2))
    assert dealt.sum() == queries and np.ptp(dealt) <= 1
    assert int(blocks) * block * devices >= queries


def test_sizes_share_few_compilations():
    metrics._call_ranks.clear_cache()
    rng = np.random.default_rng(5)
    for queries, candidates in ((113, 3), (128, 1024), (120, 700)):
        embeds = rng.standard_normal((queries, 3)), rng.standard_normal((candidates, 3))
        metrics.ranks(*embeds, np.arange(queries) % candidates, np.arange(candidates))
    assert metrics._call_ranks._cache_size() == 1


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


def test_a_row_can_be_relevant_and_not():
    # Candidates 0, 1 and 2 are one row: of group 7 twice, of group 8 once.
    candidates = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 2]], np.float32)
    groups = np.array([7, 8, 7, 8, 9])
    queries = np.array([[1, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    found = metrics.ranks(queries, candidates, np.array([7, 8, 8, 8]), groups)
    # Query 0: two own, the copy of group 8 ties: rank 2. Query 1: one own, two copies tie: rank 3.
    # Query 2: own score 1, tied with the two copies, below candidate 4: rank 4.
    # Query 3: own score 1, below candidate 4, the copies score 0: rank 2.
    assert found.tolist() == [2, 3, 4, 2]


def lowered(size, block, candidates, dim):
    """The program of one call on one device; nothing is run."""

    def array(*shape, dtype=np.int32):
        return jax.ShapeDtypeStruct(shape, dtype)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (metrics._AXIS,))
    pool = array(candidates, dim, dtype=np.float32), array(candidates), array(candidates)
    asked = [array(size, 1, dim, dtype=np.float32), array(size, 1), array(size, 1)]
    return metrics._call_ranks.lower(mesh, block, array(), asked, pool)


def test_memory_is_a_block_of_scores_whatever_the_number_of_queries():
    # 100,000 x 100,000 at 512 dimensions.
    queries, candidates = 100_000, 100_352
    calls = list(metrics._calls(queries, candidates, devices=1))
    assert sum(len(range(*rows.indices(queries))) for rows, _, _ in calls) == queries
    ((size, block),) = {call[1:] for call in calls}  # all alike: compiled once
    memory = lowered(size, block, candidates, 512).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.5 * block * candidates * 4 < 0.4e9
    # One million candidates: a smaller block.
    ((_, block),) = {call[1:] for call in metrics._calls(10**6, 10**6, devices=8)}
    assert block * 10**6 * 4 < 0.3e9


def test_accelerators_are_told_not_to_round_the_factors():
    assert "precision = [HIGHEST, HIGHEST]" in lowered(16, 16, 1024, 8).as_text()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_an_error(bad):
    good = np.eye(3, dtype=np.float32)
    broken = good.copy()
    broken[1, 2] = bad
    for image_embeds, text_embeds in ((broken, good), (good, broken)):
        with pytest.raises(ValueError, match=r"1 of 3 .* not finite, the first in row 1"):
            metrics.retrieval_metrics(image_embeds, text_embeds, np.arange(3))


def test_a_score_that_is_not_a_number_counts_against_the_model():
    # No product of finite embeddings is sure to overflow to NaN everywhere: it is put in.
    rows = np.zeros((metrics._PARTS, 1), np.float32)
    rows[:3, 0] = [np.nan, 2, 1]
    found = jax.jit(metrics._block_ranks)(
        jnp.ones((4, 1)),
        jnp.array([0, 1, 0, 0]),
        jnp.array([1, 1, 2, 3]),
        jnp.array(rows),
        jnp.array([1, 1, 1] + [0] * (metrics._PARTS - 3)),
        jnp.array([0, 1, 2]),
    )
    # Its own score is NaN: last. Another is: behind that one. One of its two own is: behind the
    # third. All are its own: first.
    assert found.tolist() == [3, 2, 2, 1]


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
