"""The work of a step, by hand: 3 × forward where a tower moves, on real tokens."""

import numpy as np
import pytest

from clip_italian.batch import Batch, TokenGroup
from clip_italian.training.cost import Work, work_of


class Costs:
    """A picture costs 100, or 60 with patches left out; n tokens cost n² + 10 n."""

    image_flops, trained_image_flops = 100.0, 60.0

    def text_flops(self, lengths):
        return np.asarray(lengths, np.float64) ** 2 + 10 * lengths


def group(lengths, slots):
    mask = (np.arange(slots)[None] < np.array(lengths)[:, None]).astype(np.int32)
    return TokenGroup(mask, mask)


IDS = np.zeros((4, 2), np.int32)
# Captions of 2, 3, 3 and 5 tokens in 3 × 4 + 1 × 8 slots.
BATCH = Batch((group([2, 3, 3], 4), group([5], 8)), IDS, IDS, np.zeros((4, 2, 2, 3), np.uint8))
TEXT = 24 + 39 + 39 + 75


@pytest.mark.parametrize(
    ("moving", "flops"),
    [
        (("vision", "text", "projection", "logit"), 3 * 4 * 60 + 3 * TEXT),
        (("text", "projection"), 4 * 100 + 3 * TEXT),
        (("vision",), 3 * 4 * 60 + TEXT),
        (("projection",), 4 * 100 + TEXT),
    ],
)
def test_forward_passes_of_moving_and_frozen_towers(moving, flops):
    assert work_of(BATCH, moving, Costs()) == Work(flops, tokens=13, slots=20)


def test_cached_towers_cost_nothing():
    features = np.zeros((4, 8), np.float32)
    image = BATCH._replace(pixel_values=None, image_features=features)
    assert work_of(image, ("text",), Costs()) == Work(3 * TEXT, 13, 20)
    both = image._replace(text=(), text_features=features)
    assert work_of(both, ("projection",), Costs()) == Work(0, 0, 0)


def test_every_host_has_as_much():
    assert work_of(BATCH, (), Costs(), hosts=3) == Work(3 * (400 + TEXT), 39, 60)
