import dataclasses

import numpy as np
import pytest

from clip_italian.data.evaluation_set import EvaluationSet
from clip_italian.data.records import hash_words
from clip_italian.data.sources import open_sources
from tests.data.conftest import smooth_image

NUMBERS = [100, 101, 102, 103, 104]


@pytest.fixture
def evaluation(config, tokenizer):
    return make(config, tokenizer)


def make(config, tokenizer):
    source, _ = open_sources(config.data, "validation")
    return EvaluationSet(config, source, tokenizer, 24)


def colours(pixels):
    return pixels.reshape(len(pixels), -1, 3).mean(1)


def expected_colours(numbers):
    return np.stack([smooth_image(n)[:, 4:44].mean((0, 1)) for n in numbers])


def test_every_image_and_caption_in_order(evaluation):
    assert (evaluation.name, evaluation.num_images) == ("a", 5)
    assert evaluation.captions == [f"un {x} {n}" for n in NUMBERS for x in ("gatto", "cane")]
    assert evaluation.caption_image.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert evaluation.caption_image.dtype == np.int32
    assert evaluation.image_keys == [f"a/{n}" for n in NUMBERS]


def test_image_batches_are_padded_and_masked(evaluation):
    first, second = evaluation.image_batches()
    assert first.mask.tolist() == [True] * 4
    assert second.mask.tolist() == [True, False, False, False]
    pixels = np.concatenate([first.pixel_values, second.pixel_values])
    assert pixels.shape == (8, 24, 24, 3) and pixels.dtype == np.uint8
    np.testing.assert_allclose(colours(pixels[:5]), expected_colours(NUMBERS), atol=3)
    assert pixels[5:].max() == 0


def test_text_batches_are_padded_and_masked(evaluation):
    batches = list(evaluation.text_batches())
    assert [batch.mask.sum() for batch in batches] == [4, 4, 2]
    assert all(batch.tokens.input_ids.shape == (4, 6) for batch in batches)
    ids = np.concatenate([batch.tokens.input_ids for batch in batches])
    assert ids[:2].tolist() == [[2, 4, 5, 1, 3, 0], [2, 4, 7, 1, 3, 0]]
    assert all(batch.tokens.attention_mask.sum(1).min() > 0 for batch in batches)


def test_loss_batches_pair_each_image_with_its_first_caption(evaluation):
    (first, first_mask), (second, mask) = evaluation.loss_batches()
    assert first_mask.all() and mask.tolist() == [True, False, False, False]
    hashes = [list(hash_words(f"un gatto {n}")) for n in NUMBERS]
    assert first.caption_id.tolist() == hashes[:4]
    assert second.caption_id.tolist() == [hashes[4], [0, 0], [0, 0], [0, 0]]
    assert second.image_id.tolist() == [list(hash_words("a/104")), [0, 0], [0, 0], [0, 0]]
    np.testing.assert_allclose(colours(first.pixel_values), expected_colours(NUMBERS[:4]), atol=3)
    assert second.text[0].input_ids.shape == (4, 6)


def test_eval_images_takes_the_first(config, tokenizer):
    few = make(
        dataclasses.replace(config, eval=dataclasses.replace(config.eval, eval_images=2)), tokenizer
    )
    assert few.image_keys == ["a/100", "a/101"]
    (batch,) = few.image_batches()
    np.testing.assert_allclose(
        colours(batch.pixel_values[:2]), expected_colours([100, 101]), atol=3
    )


def test_thumbnails_come_in_the_order_asked_for(evaluation):
    pictures = evaluation.thumbnails([4, 0, 0], size=16)
    assert pictures.shape == (3, 16, 16, 3)
    np.testing.assert_allclose(colours(pictures), expected_colours([104, 100, 100]), atol=3)
    assert evaluation.thumbnails([]).shape == (0, 128, 128, 3)
