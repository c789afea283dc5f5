import numpy as np
import pytest

from clip_italian.evaluation import color_histogram

RED, BLUE, GREEN = (250, 0, 0), (0, 0, 250), (0, 250, 0)
WORDS = {RED: "rossa", BLUE: "blu", GREEN: "verde"}


def flat(*colors):
    """One 2 × 2 picture for each tuple of two colours, a row each."""
    return np.array([[[a, a], [b, b]] for a, b in colors], np.uint8)


def test_color_histograms_by_hand():
    histograms = color_histogram.color_histograms(flat((RED, BLUE), (RED, RED)))
    red, blue = 7 * 64, 7  # 250 * 8 // 256 = 7
    assert histograms.shape == (2, 512)
    assert histograms[0, [red, blue]] == pytest.approx([0.5**0.5] * 2)
    assert histograms[1, red] == 1
    assert np.count_nonzero(histograms) == 3


def test_bags_of_words_ignore_case_order_and_unknown_words():
    bags = color_histogram.bags_of_words(["Rossa, l'altra ROSSA", "blu?"], {"blu": 0, "rossa": 1})
    assert bags.tolist() == [[0, 1], [1, 0]]


def test_colors_are_told_apart():
    colors = [(RED, BLUE), (RED, GREEN), (BLUE, GREEN)]
    captions = [f"{WORDS[a]} e {WORDS[b]}" for a, b in colors]
    recall = color_histogram.color_histogram_retrieval(
        flat(*colors * 20), captions * 20, flat(*colors), captions
    )
    assert recall == 1


def test_shapes_are_not_and_ties_count_as_misses():
    # The same colours, the other way up: the histogram cannot tell which is on top.
    images = flat((RED, BLUE), (BLUE, RED))
    captions = ["rossa sopra", "blu sopra"]
    recall = color_histogram.color_histogram_retrieval(
        np.tile(images, (20, 1, 1, 1)), captions * 20, images, captions
    )
    assert recall == 0
