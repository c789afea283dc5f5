"""Linear probe and k-NN: toys by hand, scikit-learn's own pieces, and what tuning may not see."""

import math
import sys
import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neighbors import KNeighborsClassifier

from clip_italian.config import ConfigError
from clip_italian.evaluation import metrics, probe
from clip_italian.evaluation.probe import held_out, knn, linear_probe
from clip_italian.evaluation.zero_shot import normalized


def clusters(images, classes=6, dim=12, spread=1.0, seed=0):
    """Features around one centre a class, far from the origin, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    centres = np.random.default_rng(99).standard_normal((classes, dim))
    features = 2 + centres[labels] + spread * rng.standard_normal((images, dim))
    return normalized(features.astype(np.float32)), labels


TRAIN, LABELS = clusters(180)
TEST, TEST_LABELS = clusters(90, seed=1)


def accuracy_at_1(found, labels):
    return metrics.recall_at_k(found.ranks(labels), 1)


def test_a_fifth_of_each_class_is_held_out_but_of_a_class_of_one():
    labels = np.repeat([0, 1, 2, 3, 5], [1, 2, 5, 10, 13])
    held = held_out(labels, seed=0)
    assert held.dtype == bool
    assert np.bincount(labels[held], minlength=6).tolist() == [0, 1, 1, 2, 0, 3]
    assert held.tolist() == held_out(labels, seed=0).tolist()
    assert held.tolist() != held_out(labels, seed=1).tolist()


def test_nothing_to_hold_out_is_an_error():
    for method in (linear_probe, knn):
        with pytest.raises(ValueError, match="no class has two training images"):
            method(np.eye(3), np.arange(3), np.eye(3))


def test_votes_by_hand():
    # Cosines of the query with the rows: 1, 0.8, 0.6, 0.8 and 0. The second and fourth row tie.
    rows = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0.8, -0.6], [0, 1]], np.float32)
    labels = np.array([0, 1, 1, 2, 2])
    nearest, cosines = probe._nearest(np.array([[1, 0]], np.float32), rows, 4)
    assert nearest.tolist() == [[0, 1, 3, 2]]
    near, middle = math.exp(-0.2 / 0.07), math.exp(-0.4 / 0.07)
    for k, expected in (
        (1, [1, 0, 0]),
        (2, [1, near, 0]),  # of the two that tie, the first
        (3, [1, near, near]),
        (4, [1, near + middle, near]),
    ):
        votes = probe._votes(nearest, cosines, labels, k, 3)
        np.testing.assert_allclose(votes, [expected], rtol=1e-5)


def test_knn_by_hand():
    # Two images a class: one is held out, so that k can only be 1; then all four vote.
    train = 7 * np.eye(4, dtype=np.float32)
    found = knn(train, np.array([0, 0, 1, 1]), np.array([[0, 0, 3, 4], [1, 0, 0, 0]]))
    assert found.chosen["k"] == 1 and found.chosen["held_out"] == 2
    np.testing.assert_allclose(found.scores, [[0, math.exp(-0.2 / 0.07)], [1, 0]], rtol=1e-5)
    assert found.ranks(np.array([1, 1])).tolist() == [1, 2]


def test_knn_uses_all_training_images_in_the_end():
    train, labels = np.eye(8, dtype=np.float32), np.repeat([0, 1], 4)
    found = knn(train, labels, train)  # each is its own neighbour, held out or not
    np.testing.assert_allclose(found.scores.max(axis=1), 1, rtol=1e-6)
    assert accuracy_at_1(found, labels) == 1.0


def by_distance(distance):
    return np.exp(-distance / 0.07)


def test_knn_equals_scikit_learn():
    found = knn(TRAIN, LABELS, TEST)
    held = held_out(LABELS, 0)
    search = GridSearchCV(
        KNeighborsClassifier(metric="cosine", algorithm="brute", weights=by_distance),
        {"n_neighbors": list(probe.NEIGHBOURS)},
        cv=PredefinedSplit(np.where(held, 0, -1)),
    ).fit(TRAIN, LABELS)
    assert found.chosen["k"] == search.best_params_["n_neighbors"] > 1
    assert found.chosen["held_out_accuracy"] == pytest.approx(search.best_score_, abs=1e-12)
    share = found.scores / found.scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(share, search.predict_proba(TEST), atol=1e-5)
    assert accuracy_at_1(found, TEST_LABELS) == search.score(TEST, TEST_LABELS)


def test_knn_takes_no_more_neighbours_than_there_are():
    train, labels = clusters(12, classes=2)  # 10 remain for tuning
    found = knn(train, labels, TEST)
    assert found.chosen["k"] in (1, 5, 10)


def test_blocks_of_neighbours_equal_one(monkeypatch):
    whole = knn(TRAIN, LABELS, TEST)
    monkeypatch.setattr(probe, "_BLOCK_SIMILARITIES", 180 * 7)
    np.testing.assert_allclose(knn(TRAIN, LABELS, TEST).scores, whole.scores, rtol=1e-5)
    monkeypatch.setattr(probe, "_BLOCK_SIMILARITIES", 1)
    np.testing.assert_allclose(knn(TRAIN, LABELS, TEST).scores, whole.scores, rtol=1e-5)


def test_linear_probe_equals_scikit_learn():
    found = linear_probe(TRAIN, LABELS, TEST)
    held = held_out(LABELS, 0)
    center = TRAIN.mean(axis=0)
    size = np.sqrt(np.mean((TRAIN - center) ** 2))
    train, test = (TRAIN - center) / size, (TEST - center) / size
    search = GridSearchCV(
        LogisticRegression(max_iter=1000, tol=1e-5),
        {"C": list(probe.DECADES)},
        cv=PredefinedSplit(np.where(held, 0, -1)),
    ).fit(train, LABELS)
    decade = search.best_params_["C"]
    assert 0.3 < found.chosen["C"] / decade < 3.2
    assert found.chosen["held_out_accuracy"] >= search.best_score_ - 1e-12
    assert found.chosen["held_out"] == held.sum()
    assert found.chosen["converged"] is True
    model = LogisticRegression(C=found.chosen["C"], tol=1e-5).fit(train, LABELS)
    np.testing.assert_allclose(found.scores, model.decision_function(test), atol=1e-4)
    assert accuracy_at_1(found, TEST_LABELS) == model.score(test, TEST_LABELS) > 0.5


def test_centring_and_one_scale_leave_the_solution_alone():
    found = linear_probe(TRAIN, LABELS, TEST)
    size = np.sqrt(np.mean((TRAIN - TRAIN.mean(axis=0)) ** 2))
    plain = LogisticRegression(C=found.chosen["C"] / size**2, tol=1e-8, max_iter=10**4)
    plain.fit(TRAIN.astype(np.float64), LABELS)
    ours = np.exp(found.scores - np.logaddexp.reduce(found.scores, axis=1, keepdims=True))
    np.testing.assert_allclose(ours, plain.predict_proba(TEST.astype(np.float64)), atol=2e-3)


def test_c_is_refined_by_half_decades(monkeypatch):
    asked = []

    def fit(features, labels, strength):
        asked.append((len(labels), round(math.log10(strength), 3)))
        return original(features, labels, strength)

    original = probe._fit
    monkeypatch.setattr(probe, "_fit", fit)
    chosen = linear_probe(TRAIN, LABELS, TEST).chosen
    tuned = [power for _, power in asked[:-1]]
    assert tuned[:8] == [-5, -4, -3, -2, -1, 0, 1, 2]
    assert tuned[9] - tuned[8] == 1 and tuned[8] + 0.5 in tuned[:8] and len(tuned) == 10
    assert {images for images, _ in asked[:-1]} == {144}
    assert asked[-1] == (180, round(math.log10(chosen["C"]), 3))


def test_the_best_is_the_smallest_of_equals():
    assert probe._best({10: 0.5, 1: 0.5, 5: 0.25, 20: 0.5}) == 1
    assert probe._best({10: 0.5, 1: 0.5, 5: 0.75}) == 5


def test_two_classes():
    train, labels = clusters(40, classes=2)
    test, test_labels = clusters(20, classes=2, seed=1)
    for method in (linear_probe, knn):
        found = method(train, labels, test)
        assert found.scores.shape == (20, 2) and found.scores.dtype == np.float32
        assert accuracy_at_1(found, test_labels) > 0.8


@pytest.mark.parametrize("method", [linear_probe, knn])
def test_classes_without_training_images_are_last(method):
    train, labels = clusters(60, classes=3)
    test, _ = clusters(6, classes=3, seed=1)
    found = method(train, np.array([0, 1, 4])[labels], test)
    assert found.scores.shape == (6, 5)
    assert np.isneginf(found.scores[:, [2, 3]]).all()
    assert np.isfinite(found.scores[:, [0, 1, 4]]).all()
    assert found.ranks(np.full(6, 2)).tolist() == [5] * 6
    assert found.ranks(np.full(6, 7)).tolist() == [8] * 6


@pytest.mark.parametrize("method", [linear_probe, knn])
def test_random_labels_cannot_be_told(method):
    # Were a held-out image among those that it is judged by, k = 1 or a large C would know it.
    rng = np.random.default_rng(3)
    train = rng.standard_normal((200, 60)).astype(np.float32)
    found = method(train, rng.integers(0, 4, 200), train[:10])
    assert found.chosen["held_out_accuracy"] < 0.5


def test_noisy_labels_want_more_than_one_neighbour():
    train, labels = clusters(300, spread=0.1)
    noisy = np.where(np.random.default_rng(4).random(300) < 0.4, 0, labels)
    assert knn(train, noisy, TEST).chosen["k"] > 1


@pytest.mark.parametrize("method", [linear_probe, knn])
def test_the_seed_draws_what_is_held_out(method, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        probe, "held_out", lambda labels, seed: drawn.append(seed) or held_out(labels, seed)
    )
    method(TRAIN, LABELS, TEST)
    method(TRAIN, LABELS, TEST, seed=7)
    assert drawn == [0, 7]


@pytest.mark.parametrize("method", [linear_probe, knn])
def test_tuning_does_not_depend_on_the_test_images(method):
    # These are training images, whose labels it knows: a probe tuned on them would overfit.
    train, labels = clusters(180, spread=3.0)
    assert method(train, labels, train).chosen == method(train, labels, TEST).chosen


def test_a_fit_that_does_not_converge_is_recorded(monkeypatch):
    monkeypatch.setattr(probe, "MAX_ITERATIONS", 2)
    chosen = linear_probe(TRAIN, LABELS, TEST).chosen
    assert chosen["converged"] is False and chosen["iterations"] == 2


def test_other_warnings_are_passed_on(monkeypatch):
    monkeypatch.setattr(LogisticRegression, "fit", lambda *_: warnings.warn("mind", stacklevel=1))
    with pytest.warns(UserWarning, match="mind"), warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)  # not raised, as elsewhere in the tests
        _, converged = probe._fit(TRAIN, LABELS, 1.0)
    assert converged


def test_features_that_are_all_alike():
    train, labels = np.ones((10, 3), np.float32), np.arange(10) % 2
    assert accuracy_at_1(linear_probe(train, labels, train), labels) == 0.0  # all logits tie
    assert accuracy_at_1(knn(train, labels, train), labels) == 0.5  # the first image's class


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ConfigError, match=r"needs scikit-learn; .* 'clip-italian\[eval\]'"):
        linear_probe(TRAIN, LABELS, TEST)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"found \(180, 12\), \(3,\) and \(90, 12\)"):
        knn(TRAIN, LABELS[:3], TEST)
    with pytest.raises(ValueError, match=r"found \(180, 12\), \(180,\) and \(90, 2\)"):
        linear_probe(TRAIN, LABELS, TEST[:, :2])
    broken = TEST.copy()
    broken[3, 3] = np.inf
    for train, test in ((TRAIN, broken), (broken, TEST)):
        with pytest.raises(ValueError, match="not finite"):
            knn(train, np.arange(len(train)) % 2, test)
    with pytest.raises(ValueError, match="labels from 0"):
        knn(TRAIN, LABELS - 1, TEST)
    with pytest.raises(ValueError, match="labels from 0"):
        knn(TRAIN[:0], LABELS[:0], TEST)
    with pytest.raises(ValueError, match="two classes or more"):
        linear_probe(TRAIN, np.zeros(180, int), TEST)
