"""What a model must beat: retrieval without any learned representation. Arrays only."""

import re
from collections.abc import Sequence

import numpy as np

BINS = 8  # levels per colour channel of the joint histogram


def color_histograms(images: np.ndarray) -> np.ndarray:
    """Square roots of joint RGB histograms.

    Args:
      images: uint8 [n, height, width, 3].

    Returns:
      float32 [n, BINS³]; each row has length 1, so that dot products are Bhattacharyya
      coefficients.
    """
    levels = images.astype(np.int64) * BINS // 256
    codes = (levels[..., 0] * BINS + levels[..., 1]) * BINS + levels[..., 2]
    counts = [np.bincount(image.ravel(), minlength=BINS**3) for image in codes]
    return np.sqrt(np.stack(counts) / codes[0].size).astype(np.float32)


def bags_of_words(captions: Sequence[str], vocabulary: dict[str, int]) -> np.ndarray:
    """Which words of `vocabulary` (word → column) each caption has: float32 [n, words]."""
    bags = np.zeros((len(captions), len(vocabulary)), np.float32)
    for row, caption in enumerate(captions):
        columns = [vocabulary[word] for word in _words(caption) if word in vocabulary]
        bags[row, columns] = 1
    return bags


def color_histogram_retrieval(
    train_images: np.ndarray,
    train_captions: Sequence[str],
    images: np.ndarray,
    captions: Sequence[str],
    penalty: float = 1.0,
) -> float:
    """Text→image R@1 of ridge regression from colour histograms to bags of words.

    The weakest model that could still solve a set of pictures: colours in, words out, linear.
    Words and histograms are centred on the training means, candidates compared by cosine.

    Args:
      train_images: uint8 [m, height, width, 3], what the regression is fitted on.
      train_captions: one caption for each of them.
      images: uint8 [n, height, width, 3], the candidates.
      captions: one caption for each of them, the queries.
      penalty: ridge penalty on the squared weights, in units of summed squared error.

    Returns:
      The share of captions whose own image scores highest (a tie counts as a miss).
    """
    words = sorted({word for caption in train_captions for word in _words(caption)})
    vocabulary = {word: column for column, word in enumerate(words)}
    inputs = color_histograms(train_images).astype(np.float64)
    targets = bags_of_words(train_captions, vocabulary).astype(np.float64)
    input_mean, target_mean = inputs.mean(axis=0), targets.mean(axis=0)
    inputs -= input_mean
    gram = inputs.T @ inputs + penalty * np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs.T @ (targets - target_mean))
    predicted = _unit((color_histograms(images) - input_mean) @ weights)
    asked = _unit(bags_of_words(captions, vocabulary) - target_mean)
    scores = asked @ predicted.T
    own = np.diag(scores)[:, None]
    return float(((scores >= own).sum(axis=1) == 1).mean())


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.lower())


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
