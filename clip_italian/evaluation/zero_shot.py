"""Zero-shot classification: images among class names, ties counted against the model."""

from collections.abc import Sequence

import numpy as np

from clip_italian.config import ConfigError
from clip_italian.evaluation import metrics

ACCURACY_KS = (1, 5)


def top_k_accuracy(
    image_embeds: np.ndarray,
    class_embeds: np.ndarray,
    labels: np.ndarray,
    ks: Sequence[int] = ACCURACY_KS,
) -> dict[int, float]:
    """Fraction of images whose class is among the k best scored ones, for each k.

    Args:
      image_embeds: float [images, dim].
      class_embeds: float [classes, dim], one text for each class.
      labels: int [images], index of each image's class.
      ks: numbers of guesses.

    Raises:
      ValueError: shapes do not fit, an embedding is not finite, or a label has no class.
    """
    found = metrics.ranks(image_embeds, class_embeds, labels, np.arange(len(class_embeds)))
    return {k: metrics.recall_at_k(found, k) for k in ks}


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
                f"zero_shot = True is not allowed with captions that are not labels: image {image} "
                f"has {list(index)[labels[image]]!r} and {caption!r}"
            )
    if set(labels) != set(range(len(labels))):
        raise ValueError("caption_image must give every image from 0 to the last a caption")
    return list(index), np.array([labels[image] for image in range(len(labels))], np.int32)
