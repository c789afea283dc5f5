"""Zero-shot accuracy by hand, and classes taken from captions."""

import numpy as np
import pytest

from clip_italian.config import ConfigError
from clip_italian.evaluation.zero_shot import classes_from_captions, top_k_accuracy


def test_accuracy_by_hand_with_ties_against_the_model():
    classes = np.eye(4, dtype=np.float32)
    images = np.array(
        [
            [9, 1, 2, 3],  # class 0: rank 1
            [9, 1, 2, 3],  # class 3: rank 2
            [5, 5, 0, 0],  # class 0, tied with class 1: rank 2
            [0, 0, 0, 0],  # class 2, all tied: rank 4
        ],
        np.float32,
    )
    accuracy = top_k_accuracy(images, classes, np.array([0, 3, 0, 2]), ks=(1, 2, 3, 4))
    assert accuracy == {1: 0.25, 2: 0.75, 3: 0.75, 4: 1.0}


def test_a_label_without_class_is_an_error():
    with pytest.raises(ValueError, match="query 1 of group 2"):
        top_k_accuracy(np.eye(2), np.eye(2), np.array([0, 2]))


def test_classes_are_the_distinct_captions():
    captions = ["cane", "gatto", "cane", "pesce", "gatto", "gatto"]
    classes, labels = classes_from_captions(captions, np.array([0, 2, 1, 4, 3, 2], np.int32))
    assert classes == ["cane", "gatto", "pesce"]
    assert labels.dtype == np.int32
    assert labels.tolist() == [0, 0, 1, 1, 2]


def test_captions_that_are_not_labels_are_refused():
    with pytest.raises(ConfigError, match=r"zero_shot = True .* image 0 has 'cane' and 'un cane'"):
        classes_from_captions(["cane", "gatto", "un cane"], np.array([0, 1, 0]))


def test_an_image_without_caption_is_an_error():
    with pytest.raises(ValueError, match="every image"):
        classes_from_captions(["cane", "gatto"], np.array([0, 2]))
