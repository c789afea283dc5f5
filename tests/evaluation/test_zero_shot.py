"""Zero-shot classification by hand, and classes taken from captions."""

import tracemalloc

import numpy as np
import pytest

from clip_italian.config import ConfigError
from clip_italian.evaluation import zero_shot
from clip_italian.evaluation.languages.pack import ClassName, LanguagePack
from clip_italian.evaluation.zero_shot import (
    accuracy,
    class_embeds,
    classes_from_captions,
    classify,
    classify_scores,
    confusion_pairs,
    ks_for,
    pack_embeds,
    per_class_accuracy,
    prompt_list,
)

# Scores of four images among four classes.
SCORES = np.array(
    [
        [9, 1, 2, 3],  # class 0: rank 1
        [9, 1, 2, 3],  # class 3: rank 2
        [5, 5, 0, 0],  # class 0, tied with class 1: rank 2
        [0, 0, 0, 0],  # class 2, all tied: rank 4
    ],
    np.float32,
)
LABELS = np.array([0, 3, 0, 2])
PACK = LanguagePack(
    (
        ClassName("a", {"bare": "gru", "indefinite": "una gru"}),
        ClassName("b", {"bare": "oca", "indefinite": "un'oca"}),
        ClassName("c", {"bare": "gru", "indefinite": "una gru"}),
    ),
    ("{bare}", "ecco {indefinite}"),
)


def test_classification_by_hand_with_ties_against_the_model():
    found = classify(SCORES, np.eye(4, dtype=np.float32), LABELS)
    assert found.ranks.tolist() == [1, 2, 2, 4]
    # Image 2 ties with class 1, so it is shown as class 1; image 3 as the first of the others.
    assert found.predicted.tolist() == [0, 0, 1, 0]
    assert found.ranks.dtype == np.int64 and found.predicted.dtype == np.int32
    assert accuracy(found.ranks, (1, 2, 3, 4)) == {
        "acc@1": 0.25, "acc@2": 0.75, "acc@3": 0.75, "acc@4": 1.0
    }  # fmt: skip


def test_scores_of_a_classifier_are_ranked_alike():
    scores = SCORES.copy()
    found = classify_scores(scores, LABELS)
    assert found.ranks.tolist() == [1, 2, 2, 4]
    assert found.predicted.tolist() == [0, 0, 1, 0]
    assert (scores == SCORES).all()
    untold = classify_scores(np.array([[1, -np.inf, -np.inf, 0]]), np.array([2]))
    assert (untold.ranks.tolist(), untold.predicted.tolist()) == ([4], [0])


def test_the_prediction_is_right_exactly_where_the_rank_is_one():
    rng = np.random.default_rng(0)
    for _ in range(200):
        classes, dim = rng.choice([1, 2, 5]), rng.choice([1, 3])
        images = rng.integers(-2, 3, (7, dim)).astype(np.float32)
        texts = rng.integers(-2, 3, (classes, dim)).astype(np.float32)
        labels = rng.integers(0, classes, 7)
        found = classify(images, texts, labels)
        assert ((found.predicted == labels) == (found.ranks == 1)).all()
        scores = images @ texts.T
        best = scores.max(axis=1)
        wrong = found.ranks > 1
        assert (scores[np.arange(7), found.predicted][wrong] == best[wrong]).all()


def test_classes_of_one_name_tie_at_any_width():
    # The two equal classes are right for half of the images each: none of them counts.
    rng = np.random.default_rng(1)
    texts = rng.standard_normal((37, 512)).astype(np.float32)
    texts[36] = texts[5]
    images = texts[[5, 36, 7]] + 0.01
    found = classify(images, texts, np.array([5, 36, 7]))
    assert found.ranks.tolist() == [2, 2, 1]
    assert found.predicted.tolist() == [36, 5, 7]


def test_a_collapsed_model_predicts_the_first_class_that_is_wrong():
    # Equal rows must tie wherever they stand; a plain matrix product rounds some differently.
    rng = np.random.default_rng(3)
    texts = np.tile(rng.standard_normal(512).astype(np.float32), (37, 1))
    images = rng.standard_normal((3, 512)).astype(np.float32)
    labels = np.arange(3)
    found = classify(images, texts, labels)
    assert set(found.ranks.tolist()) == {37}
    assert found.predicted.tolist() == [1, 0, 0]


def test_blocks_equal_one_and_need_little_memory(monkeypatch):
    rng = np.random.default_rng(2)
    images = rng.standard_normal((3000, 8)).astype(np.float32)
    texts = rng.standard_normal((500, 8)).astype(np.float32)  # all scores: 6 MB
    labels = rng.integers(0, 500, 3000)
    whole = classify(images, texts, labels)
    assert (images @ texts.T).argmax(axis=1)[whole.ranks > 1].tolist() == (
        whole.predicted[whole.ranks > 1].tolist()
    )
    monkeypatch.setattr(zero_shot, "_BLOCK_SCORES", 500 * 70)
    tracemalloc.start()
    try:
        found = classify(images, texts, labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.predicted.tolist() == whole.predicted.tolist()
    assert found.ranks.tolist() == whole.ranks.tolist()
    assert peak < 2e6


def test_numbers_of_guesses_that_say_something():
    assert ks_for(1000) == (1, 5, 10, 100)
    assert ks_for(101) == (1, 5, 10, 100)
    assert ks_for(100) == ks_for(11) == (1, 5, 10)
    assert ks_for(10) == (1, 5)
    assert ks_for(5) == ks_for(1) == (1,)


def test_accuracy_of_each_class():
    ranks, labels = np.array([1, 1, 2, 5, 1]), np.array([0, 0, 0, 3, 1])
    values = per_class_accuracy(ranks, labels, 5)
    np.testing.assert_array_equal(values, [2 / 3, 1, np.nan, 0, np.nan])
    assert values.dtype == np.float64


def test_confusions_by_frequency_then_class():
    labels = np.array([2, 2, 1, 0, 0, 1, 3, 3])
    predicted = np.array([0, 0, 3, 0, 1, 3, 3, 2])
    expected = [(1, 3, 2), (2, 0, 2), (0, 1, 1), (3, 2, 1)]
    assert confusion_pairs(labels, predicted) == expected
    assert confusion_pairs(labels, predicted, limit=1) == expected[:1]
    assert confusion_pairs(labels, labels) == []
    assert all(
        type(number) is int for pair in confusion_pairs(labels, predicted) for number in pair
    )


def test_a_class_is_the_mean_of_its_normalised_prompts():
    # Class 0: [3, 4] and [0, 2], at length 1 [0.6, 0.8] and [0, 1]; their mean is [0.3, 0.9].
    prompts = np.array([[3, 4], [5, 0], [0, 2]], np.float32)
    classes = class_embeds(prompts, np.array([0, 1, 0]), 2)
    expected = np.array([[0.3, 0.9], [1, 0]]) / [[np.sqrt(0.9)], [1]]
    np.testing.assert_allclose(classes, expected, rtol=1e-7)
    assert classes.dtype == np.float32


def test_prompts_that_cancel_out_leave_zeros():
    classes = class_embeds(np.array([[1, 0], [-1, 0], [0, 0]]), np.array([0, 0, 1]), 2)
    assert classes.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("embeds", "of", "classes", "message"),
    [
        (np.eye(2), [0, 2], 3, "each of the 3 classes needs a prompt"),
        (np.eye(2), [0, 1], 1, "each of the 1 classes needs a prompt"),
        (np.eye(2), [0], 1, r"found \(2, 2\) and classes \(1,\)"),
        (np.array([[np.nan, 1]]), [0], 1, "not finite"),
    ],
)
def test_prompts_that_do_not_fit_are_an_error(embeds, of, classes, message):
    with pytest.raises(ValueError, match=message):
        class_embeds(embeds, np.array(of), classes)


def test_prompts_of_a_pack_stand_class_after_class():
    prompts, prompt_class = prompt_list(PACK)
    assert prompts == ["gru", "ecco una gru", "oca", "ecco un'oca", "gru", "ecco una gru"]
    assert prompt_class.tolist() == [0, 0, 1, 1, 2, 2]
    assert prompt_class.dtype == np.int32


def test_a_pack_encodes_each_distinct_prompt_once():
    asked = []

    def encode_texts(texts):
        asked.append(list(texts))
        return np.array([[len(text), place + 1] for place, text in enumerate(texts)], np.float32)

    embeds = pack_embeds(PACK, encode_texts)
    assert asked == [["gru", "ecco una gru", "oca", "ecco un'oca"]]
    assert embeds[0].tolist() == embeds[2].tolist()  # so they tie, wherever they stand
    rows = np.array([[3, 1], [12, 2], [3, 3], [11, 4]], np.float32)
    expected = class_embeds(rows[[0, 1, 2, 3, 0, 1]], np.array([0, 0, 1, 1, 2, 2]), 3)
    np.testing.assert_array_equal(embeds, expected)


def test_a_label_without_class_is_an_error():
    with pytest.raises(ValueError, match="query 1 of group 2"):
        classify(np.eye(2), np.eye(2), np.array([0, 2]))
    for labels in ([0, 2], [0, -1]):
        with pytest.raises(ValueError, match="a label has no class"):
            classify_scores(np.eye(2), np.array(labels))


def test_scores_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"found \(2, 2\) and labels \(1,\)"):
        classify_scores(np.eye(2), np.array([0]))
    with pytest.raises(ValueError, match="a score is no number"):
        classify_scores(np.array([[np.nan, 0]]), np.array([1]))


def test_classes_are_the_distinct_captions():
    captions = ["cane", "gatto", "cane", "pesce", "gatto", "gatto"]
    classes, labels = classes_from_captions(captions, np.array([0, 2, 1, 4, 3, 2], np.int32))
    assert classes == ["cane", "gatto", "pesce"]
    assert labels.dtype == np.int32
    assert labels.tolist() == [0, 0, 1, 1, 2]


def test_captions_that_are_not_labels_are_refused():
    with pytest.raises(ConfigError, match=r"zero_shot .* image 0 has 'cane' and 'un cane'"):
        classes_from_captions(["cane", "gatto", "un cane"], np.array([0, 1, 0]))


def test_an_image_without_caption_is_an_error():
    with pytest.raises(ValueError, match="every image"):
        classes_from_captions(["cane", "gatto"], np.array([0, 2]))
