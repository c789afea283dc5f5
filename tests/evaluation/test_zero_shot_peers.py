"""Zero-shot accuracy against scikit-learn on 1,000 random cases with ties.

scikit-learn breaks ties by place: of equal scores, the class of the higher index comes first. We
let ties count against the model. So that both mean the same, each image's scores are handed over
with its right class moved to column 0, where it comes last among equals.
"""

import numpy as np
import pytest
from sklearn import config_context
from sklearn.metrics import confusion_matrix, recall_score, top_k_accuracy_score

from clip_italian.evaluation import zero_shot


def random_cases():
    """Embeddings of small whole numbers: exact in float32, with many ties."""
    rng = np.random.default_rng(0)
    for _ in range(1000):
        images, classes, dim = rng.integers(1, 13), rng.integers(3, 12), rng.integers(1, 4)
        yield (
            rng.integers(-2, 3, (images, dim)).astype(np.float32),
            rng.integers(-2, 3, (classes, dim)).astype(np.float32),
            rng.integers(0, classes, images),
        )


def right_class_first(scores, labels):
    """[images, classes]: column 0 is the right class, the others follow in their order."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    others = scores[np.arange(scores.shape[1]) != labels[:, None]].reshape(len(scores), -1)
    return np.concatenate([own, others], axis=1)


@pytest.fixture(scope="module")
def cases():
    return [
        (images @ classes.T, labels, zero_shot.classify(images, classes, labels))
        for images, classes, labels in random_cases()
    ]


@config_context(assume_finite=True, skip_parameter_validation=True)  # four times as fast
def test_accuracy_at_k(cases):
    tied = plain = 0
    for scores, labels, found in cases:
        classes = scores.shape[1]
        ks = [k for k in (1, 2, 5, 10) if k < classes]
        ours = zero_shot.accuracy(found.ranks, ks)
        first, zeros = right_class_first(scores, labels), np.zeros(len(labels), int)
        own = first[:, :1]
        ties = (first[:, 1:] == own).any()
        tied += ties
        for k in ks:
            theirs = top_k_accuracy_score(zeros, first, k=k, labels=np.arange(classes))
            assert abs(ours[f"acc@{k}"] - theirs) < 1e-12
            if not ties:  # then there is one truth, columns as they are
                theirs = top_k_accuracy_score(labels, scores, k=k, labels=np.arange(classes))
                assert abs(ours[f"acc@{k}"] - theirs) < 1e-12
                plain += 1
        assert zero_shot.accuracy(found.ranks, (classes,)) == {f"acc@{classes}": 1.0}
    assert tied > 500 and plain > 100


def side_by_side(cases):
    """Cases as one problem: each with classes of its own, counted on from the case before.

    Returns labels and predictions int [images of all] and the number of classes.
    """
    first = np.cumsum([0, *(scores.shape[1] for scores, _, _ in cases)])
    labels = [at + labels for at, (_, labels, _) in zip(first, cases, strict=False)]
    predicted = [at + found.predicted for at, (*_, found) in zip(first, cases, strict=False)]
    return np.concatenate(labels), np.concatenate(predicted), first[-1]


def test_prediction_and_accuracy_of_each_class(cases):
    labels, predicted, classes = side_by_side(cases)
    theirs = recall_score(
        labels, predicted, labels=np.arange(classes), average=None, zero_division=np.nan
    )
    ours = [
        zero_shot.per_class_accuracy(found.ranks, labels, scores.shape[1])
        for scores, labels, found in cases
    ]
    np.testing.assert_allclose(np.concatenate(ours), theirs, rtol=0, atol=1e-12)
    for scores, labels, found in cases:
        accuracy = zero_shot.accuracy(found.ranks)["acc@1"]
        assert abs(accuracy - np.mean(found.predicted == labels)) < 1e-12
        alone = (scores == scores.max(axis=1, keepdims=True)).sum(axis=1) == 1
        np.testing.assert_array_equal(found.predicted[alone], scores.argmax(axis=1)[alone])


def test_confusions(cases):
    for start in range(0, len(cases), 50):
        labels, predicted, classes = side_by_side(cases[start : start + 50])
        matrix = confusion_matrix(labels, predicted, labels=np.arange(classes))
        np.fill_diagonal(matrix, 0)
        pairs = zero_shot.confusion_pairs(labels, predicted, limit=classes**2)
        ours = np.zeros_like(matrix)
        for right, other, images in pairs:
            ours[right, other] = images
        np.testing.assert_array_equal(ours, matrix)
        assert [images for *_, images in pairs] == sorted(matrix[matrix > 0], reverse=True)
