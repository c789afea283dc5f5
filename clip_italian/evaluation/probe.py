"""Linear probe and k-NN on frozen image features, tuned on held-out training images.

Both follow the CLIP paper (Radford et al. 2021, arXiv:2103.00020, section 3.2 and appendix A.3):
the hyperparameter is the best on held-out training images, then all training images are used. Test
images are only scored; their labels are not even handed over. Where no validation split exists, a
fifth of each class is held out.
"""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from clip_italian.config import ConfigError
from clip_italian.evaluation import metrics
from clip_italian.evaluation.zero_shot import classify_scores, normalized

HELD_OUT = 0.2  # of each class's training images
DECADES = tuple(10.0**power for power in range(-5, 3))  # of C; a half-decade follows each way
MAX_ITERATIONS = 1000  # of L-BFGS, as in the paper
TOLERANCE = 1e-5  # largest entry of the gradient, for features of unit size
NEIGHBOURS = (1, 5, 10, 20, 50)
TEMPERATURE = 0.07  # of the votes
_BLOCK_SIMILARITIES = 2**23  # held at a time (32 MiB), whatever the number of images


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a probe found.

    Attributes:
      scores: float32 [test images, classes], the higher the likelier, classes being all up to the
        highest label in training; -inf for one without training images.
      chosen: the hyperparameter and how it was found, fit for JSON.
    """

    scores: np.ndarray
    chosen: dict[str, float | int | bool]

    def ranks(self, labels: np.ndarray) -> np.ndarray:
        """Rank of each test image's class: int64 [test images], ties against the probe.

        A class without training images is ranked last.

        Args:
          labels: int [test images].
        """
        unseen = max(0, int(np.max(labels)) + 1 - self.scores.shape[1])
        scores = np.pad(self.scores, ((0, 0), (0, unseen)), constant_values=-np.inf)
        return classify_scores(scores, labels).ranks


def linear_probe(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, seed: int = 0
) -> Probe:
    """Multinomial logistic regression with L2 (L-BFGS of scikit-learn).

    Features are centred and divided by one number (their root mean square). The solutions stay the
    same: the intercept is not penalised, and the unit of C changes. But L-BFGS needs far fewer
    steps, as embeddings of one model share a large mean. Nothing is scaled feature by feature.

    C, the inverse of the penalty, is swept over decades, then half a decade to either side of the
    best; of equals the smallest.

    Args:
      train: float [images, dim], L2-normalised embeddings or others, as they are.
      labels: int [images], from 0.
      test: float [test images, dim].
      seed: of the held-out split.

    Returns:
      Scores are logits. Chosen: `C` (in the unit above), `held_out_accuracy` there, `held_out`
      images, `converged` (the last fit, within `MAX_ITERATIONS`), `iterations`.

    Raises:
      ValueError: shapes do not fit, a feature is not finite, there is one class only, or no class
        has two images.
      ConfigError: scikit-learn is not installed.
    """
    train, labels, test = _checked(train, labels, test)
    if len(np.unique(labels)) < 2:
        raise ValueError("a linear probe needs training images of two classes or more")
    center = train.mean(axis=0)
    size = np.sqrt(np.mean((train - center) ** 2)) or np.float32(1)
    train, test = (train - center) / size, (test - center) / size
    held = held_out(labels, seed)
    accuracy: dict[float, float] = {}

    def tune(strength: float) -> None:
        model, _ = _fit(train[~held], labels[~held], strength)
        scores = _logits(model, train[held], int(labels.max()) + 1)
        accuracy[strength] = metrics.recall_at_k(classify_scores(scores, labels[held]).ranks, 1)

    for strength in tqdm(DECADES, desc="linear probe", unit="value of C", dynamic_ncols=True):
        tune(strength)
    middle = _best(accuracy)
    for strength in (middle / 10**0.5, middle * 10**0.5):
        tune(strength)
    best = _best(accuracy)
    model, converged = _fit(train, labels, best)
    chosen = {
        "C": best,
        "held_out_accuracy": accuracy[best],
        "held_out": int(held.sum()),
        "converged": converged,
        "iterations": int(model.n_iter_.max()),
    }
    return Probe(_logits(model, test, int(labels.max()) + 1), chosen)


def knn(train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, seed: int = 0) -> Probe:
    """Votes of the k training images of highest cosine, each weighing exp(cosine / 0.07).

    As Wu et al. 2018 (arXiv:1805.01978, section 3.4) and DINO (Caron et al. 2021,
    arXiv:2104.14294) do. Of equally near images the first in `train` comes first. k is tuned over
    `NEIGHBOURS`; of equals the smallest. Classes without a vote tie, which counts against the
    probe: with k = 1, accuracy at 5 is accuracy at 1.

    Args:
      train: float [images, dim], of any length.
      labels: int [images], from 0.
      test: float [test images, dim].
      seed: of the held-out split.

    Returns:
      Scores are sums of votes, in units of exp(1 / 0.07). Chosen: `k`, `held_out_accuracy` there,
      `held_out` images.

    Raises:
      ValueError: shapes do not fit, a feature is not finite, or no class has two images.
    """
    train, labels, test = _checked(train, labels, test)
    train, test = normalized(train), normalized(test)
    classes = int(labels.max()) + 1
    held = held_out(labels, seed)
    ks = [k for k in NEIGHBOURS if k <= len(train) - held.sum()]
    near = _nearest(train[held], train[~held], ks[-1])
    accuracy = {}
    for k in ks:
        scores = _votes(*near, labels[~held], k, classes)
        accuracy[k] = metrics.recall_at_k(classify_scores(scores, labels[held]).ranks, 1)
    best = int(_best(accuracy))
    scores = _votes(*_nearest(test, train, best), labels, best, classes)
    scores[:, np.bincount(labels) == 0] = -np.inf
    chosen = {"k": best, "held_out_accuracy": accuracy[best], "held_out": int(held.sum())}
    return Probe(scores, chosen)


def held_out(labels: np.ndarray, seed: int) -> np.ndarray:
    """Which training images tune: a fifth of each class, at least one; none of a class of one.

    Args:
      labels: int [images].
      seed: of the draw.

    Returns:
      bool [images].

    Raises:
      ValueError: no class has two images.
    """
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for one in np.unique(labels):
        images = rng.permutation(np.flatnonzero(labels == one))
        if len(images) > 1:
            held[images[: max(1, round(HELD_OUT * len(images)))]] = True
    if not held.any():
        raise ValueError("no class has two training images: nothing can be held out for tuning")
    return held


def _checked(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    train, test = np.asarray(train, np.float32), np.asarray(test, np.float32)
    labels = np.asarray(labels)
    if train.ndim != 2 or train.shape[1:] != test.shape[1:] or labels.shape != (len(train),):
        raise ValueError(
            "training features, their labels and test features must be [images, dim], [images] "
            f"and [test images, dim], found {train.shape}, {labels.shape} and {test.shape}"
        )
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        raise ValueError("a feature is not finite: has training diverged?")
    if not len(train) or labels.min() < 0:
        raise ValueError("there must be training images, with labels from 0")
    return train, labels, test


def _best(accuracy: dict[Any, float]) -> Any:
    """The hyperparameter of the highest accuracy, the smallest of equals."""
    return min(accuracy, key=lambda value: (-accuracy[value], value))


def _fit(features: np.ndarray, labels: np.ndarray, strength: float) -> tuple[Any, bool]:
    """A fitted scikit-learn model, and whether it converged."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ConfigError(
            "a linear probe needs scikit-learn; install it with pip install 'clip-italian[eval]'"
        ) from error
    model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=TOLERANCE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features, labels)
    for one in caught:
        if not issubclass(one.category, ConvergenceWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return model, not any(issubclass(one.category, ConvergenceWarning) for one in caught)


def _logits(model: Any, features: np.ndarray, classes: int) -> np.ndarray:
    """float32 [images, classes], -inf for classes that the model has not seen."""
    logits = model.decision_function(features)
    if logits.ndim == 1:  # two classes: the second one's lead over the first
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    scores = np.full((len(features), classes), -np.inf, np.float32)
    scores[:, model.classes_] = logits
    return scores


def _nearest(queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices int64 [queries, k] of the nearest rows, nearest first, and their cosines."""
    nearest = np.empty((len(queries), k), np.int64)
    cosines = np.empty((len(queries), k), np.float32)
    for block in _blocks(len(queries), len(rows)):
        similarity = queries[block] @ rows.T
        least = np.partition(similarity, len(rows) - k, axis=1)[:, len(rows) - k]
        for offset, (row, bound) in enumerate(zip(similarity, least, strict=True)):
            near = np.flatnonzero(row >= bound)  # more than k where the last ones tie
            near = near[np.argsort(-row[near], kind="stable")[:k]]
            nearest[block.start + offset], cosines[block.start + offset] = near, row[near]
    return nearest, cosines


def _votes(
    nearest: np.ndarray, cosines: np.ndarray, labels: np.ndarray, k: int, classes: int
) -> np.ndarray:
    """float32 [queries, classes], sums over the k nearest of exp((cosine - 1) / temperature)."""
    votes = np.zeros((len(nearest), classes), np.float32)
    weights = np.exp((cosines[:, :k] - 1) / TEMPERATURE)
    np.add.at(votes, (np.arange(len(nearest))[:, None], labels[nearest[:, :k]]), weights)
    return votes


def _blocks(queries: int, rows: int) -> Iterator[slice]:
    size = max(1, _BLOCK_SIMILARITIES // rows)
    for start in range(0, queries, size):
        yield slice(start, min(start + size, queries))
