"""Zero-shot classification: images among class names, ties counted against the model.

A class is represented by the mean of its prompts, as in the CLIP paper (Radford et al. 2021,
arXiv:2103.00020, section 3.1.4). Accuracies are fractions from 0 to 1.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from clip_italian.config import ConfigError
from clip_italian.evaluation import metrics
from clip_italian.evaluation.languages.pack import LanguagePack

ACCURACY_KS = (1, 5, 10, 100)
_BLOCK_SCORES = 2**22  # scores held at a time (16 MiB), whatever the number of images


@dataclasses.dataclass(frozen=True)
class Classification:
    """What became of each image.

    Attributes:
      ranks: int64 [images], 1 + number of other classes that score at least as high as the right
        one.
      predicted: int32 [images], the best scored class, the first among equals. An image whose
        right class ties for first place counts as wrong, so its prediction is the best *other*
        class: `predicted == label` exactly where the rank is 1.
    """

    ranks: np.ndarray
    predicted: np.ndarray


def prompt_list(pack: LanguagePack) -> tuple[list[str], np.ndarray]:
    """All prompts of all classes, class after class, and int32 [prompts] the class of each."""
    prompts = [prompt for index in range(len(pack.classes)) for prompt in pack.prompts(index)]
    return prompts, np.arange(len(pack.classes), dtype=np.int32).repeat(len(pack.templates))


def pack_embeds(
    pack: LanguagePack, encode_texts: Callable[[Sequence[str]], np.ndarray]
) -> np.ndarray:
    """Class embeddings of a pack: float32 [classes, dim], rows L2-normalised.

    Each distinct prompt is encoded once: a text can come out slightly different in another batch,
    and classes of one name must tie.

    Args:
      pack: names and templates.
      encode_texts: texts → float [texts, dim]; called once.

    Raises:
      ValueError: as `class_embeds`.
    """
    prompts, prompt_class = prompt_list(pack)
    place = {text: index for index, text in enumerate(dict.fromkeys(prompts))}
    embeds = np.asarray(encode_texts(list(place)))
    return class_embeds(embeds[[place[text] for text in prompts]], prompt_class, len(pack.classes))


def class_embeds(prompt_embeds: np.ndarray, prompt_class: np.ndarray, classes: int) -> np.ndarray:
    """Mean of each class's normalised prompts, normalised again.

    Args:
      prompt_embeds: float [prompts, dim], of any length.
      prompt_class: int [prompts], each below `classes`.
      classes: how many there are; each needs a prompt.

    Returns:
      float32 [classes, dim], rows of length 1 (a row of zeros where prompts cancel out).

    Raises:
      ValueError: shapes do not fit, an embedding is not finite, or a class has no prompt.
    """
    prompt_embeds, prompt_class = np.asarray(prompt_embeds), np.asarray(prompt_class)
    if prompt_embeds.ndim != 2 or prompt_class.shape != (len(prompt_embeds),):
        raise ValueError(
            f"prompts must be [prompts, dim] with one class each, found {prompt_embeds.shape} and "
            f"classes {prompt_class.shape}"
        )
    if not np.isfinite(prompt_embeds).all():
        raise ValueError("a prompt's embedding is not finite: has training diverged?")
    if not np.array_equal(np.unique(prompt_class), np.arange(classes)):
        raise ValueError(
            f"each of the {classes} classes needs a prompt, and no other class has one"
        )
    # Summed in the order of the prompts, class by class: equal prompts give equal classes.
    order = np.argsort(prompt_class, kind="stable")
    starts = np.searchsorted(prompt_class[order], np.arange(classes))
    ordered = normalized(prompt_embeds[order].astype(np.float64))
    return normalized(np.add.reduceat(ordered, starts, axis=0)).astype(np.float32)


def normalized(rows: np.ndarray) -> np.ndarray:
    """Float rows [rows, dim] at length 1; rows of zeros stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def classify(
    image_embeds: np.ndarray, class_embeds: np.ndarray, labels: np.ndarray
) -> Classification:
    """Ranks each image's class among all classes; memory does not grow with images x classes.

    Args:
      image_embeds: float [images, dim].
      class_embeds: float [classes, dim], one for each class.
      labels: int [images], index of each image's class.

    Raises:
      ValueError: shapes do not fit, an embedding is not finite, or a label has no class.
    """
    image_embeds = np.asarray(image_embeds, np.float32)
    class_embeds = np.asarray(class_embeds, np.float32)
    labels, classes = np.asarray(labels), len(class_embeds)
    ranks = metrics.ranks(image_embeds, class_embeds, labels, np.arange(classes))
    # Equal rows scored once, because matrix products round equal columns differently.
    distinct, copy_of = np.unique(class_embeds, axis=0, return_inverse=True)
    predicted = np.empty(len(labels), np.int32)
    size = max(1, _BLOCK_SCORES // classes)
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        scores = (image_embeds[rows] @ distinct.T)[:, copy_of]
        predicted[rows] = _predicted(scores, labels[rows], ranks[rows])
    return Classification(ranks, predicted)


def classify_scores(scores: np.ndarray, labels: np.ndarray) -> Classification:
    """As `classify`, from the scores of a trained classifier.

    Args:
      scores: float [images, classes]; -inf for a class that cannot be told.
      labels: int [images], index of each image's class.

    Raises:
      ValueError: shapes do not fit, a score is no number, or a label has no class.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != (len(scores),) or not len(scores):
        raise ValueError(
            f"scores must be [images, classes] with one label each, found {scores.shape} and "
            f"labels {labels.shape}"
        )
    if np.isnan(scores).any() or labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError("a score is no number, or a label has no class")
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    ranks = scores.shape[1] - np.count_nonzero(scores < own, axis=1)
    return Classification(ranks, _predicted(scores, labels, ranks))


def ks_for(classes: int) -> tuple[int, ...]:
    """Those of `ACCURACY_KS` that say something: with k >= classes the accuracy is 1 for all."""
    return tuple(k for k in ACCURACY_KS if k == 1 or k < classes)


def accuracy(ranks: np.ndarray, ks: Sequence[int] = ACCURACY_KS) -> dict[str, float]:
    """Fraction of images whose class is among the k best scored: `acc@1`, `acc@5`, ..."""
    return {f"acc@{k}": metrics.recall_at_k(ranks, k) for k in ks}


def per_class_accuracy(ranks: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """float64 [classes], accuracy at 1 over each class's images; nan where it has none."""
    images = np.bincount(labels, minlength=classes)
    right = np.bincount(np.asarray(labels)[ranks == 1], minlength=classes)
    return np.divide(right, images, out=np.full(len(images), np.nan), where=images > 0)


def confusion_pairs(
    labels: np.ndarray, predicted: np.ndarray, limit: int = 50
) -> list[tuple[int, int, int]]:
    """(right class, predicted class, images) of the most frequent errors.

    Args:
      labels: int [images].
      predicted: int [images].
      limit: how many pairs at most.

    Returns:
      The most frequent first; equally frequent ones by class.
    """
    pairs = np.stack([labels, predicted], axis=1)
    pairs, images = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0, return_counts=True)
    order = np.argsort(-images, kind="stable")[:limit]
    return [(*pairs[index].tolist(), int(images[index])) for index in order]


def classes_from_captions(
    captions: Sequence[str], caption_image: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Classes of a labelled set whose captions are class names.

    Args:
      captions: [captions] text.
      caption_image: int [captions], index of each caption's image; every image has one or more.

    Returns:
      The distinct captions in order of appearance, and int32 [images] the class of each image.

    Raises:
      ConfigError: an image has two different captions, which are then not labels.
    """
    index: dict[str, int] = {}
    labels: dict[int, int] = {}
    for caption, image in zip(captions, np.asarray(caption_image).tolist(), strict=True):
        label = index.setdefault(caption, len(index))
        if labels.setdefault(image, label) != label:
            raise ConfigError(
                "zero_shot (caption_labels) is not allowed with captions that are no labels: image "
                f"{image} has {list(index)[labels[image]]!r} and {caption!r}"
            )
    if set(labels) != set(range(len(labels))):
        raise ValueError("caption_image must give every image from 0 to the last a caption")
    return list(index), np.array([labels[image] for image in range(len(labels))], np.int32)


def _predicted(scores: np.ndarray, labels: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The label where the rank is 1, elsewhere the best other class: int64 [images]."""
    others = np.array(scores)
    np.put_along_axis(others, labels[:, None], -np.inf, axis=1)
    return np.where(ranks == 1, labels, np.argmax(others, axis=1))
