"""Ranks against scikit-learn's top-k accuracy; `benchmarks/metrics_peers.py` does it with ranx."""

import numpy as np
import pytest

from clip_italian.evaluation import metrics

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra eval")


def test_top_k_accuracy_equals_scikit_learn_on_a_thousand_cases():
    rng = np.random.default_rng(0)
    tied = 0
    for _ in range(1000):
        # Whole numbers: scores are exact in float32, and many are equal.
        images, classes, dim = rng.integers(1, 17), rng.integers(3, 21), rng.choice([1, 3])
        image_embeds = rng.integers(-2, 3, (images, dim))
        class_embeds = rng.integers(-2, 3, (classes, dim))
        labels = rng.integers(0, classes, images)
        k = int(rng.integers(1, classes))
        ranks = metrics.ranks(image_embeds, class_embeds, labels, np.arange(classes))
        scores = (image_embeds @ class_embeds.T).astype(np.float64)
        own = scores[np.arange(images), labels][:, None]
        tied += bool((np.count_nonzero(scores == own, axis=1) > 1).any())
        # scikit-learn breaks ties by the order of the classes; here they count against the model:
        # the true class is handed over lowered by less than the gap between two scores.
        scores[np.arange(images), labels] -= 0.5
        expected = sklearn_metrics.top_k_accuracy_score(
            labels, scores, k=k, labels=np.arange(classes)
        )
        assert abs(metrics.recall_at_k(ranks, k) - expected) < 1e-12
    assert tied > 500
