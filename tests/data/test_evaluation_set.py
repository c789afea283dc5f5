import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from clip_italian.collection import Collection
from clip_italian.config import ConfigError
from clip_italian.data.collections import open_records
from clip_italian.data.evaluation_set import EvaluationSet
from clip_italian.data.records import hash_words
from clip_italian.data.tokens import encode
from tests.data.conftest import change, jpeg, smooth_image

NUMBERS = [100, 101, 102, 103, 104]


@pytest.fixture
def evaluation(config, tokenizer):
    return make(config, tokenizer)


def make(config, tokenizer, limit=0):
    collection = open_records(config.data.data_dir, "a", limit=limit)
    return EvaluationSet(config, collection, tokenizer, 24)


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


def test_texts_are_as_long_as_the_longest_needs(config, tokenizer):
    config = change(config, max_length=40)
    one = make(config, tokenizer)
    texts = [batch.tokens for batch in one.text_batches()]
    assert [group.input_ids.shape for group in texts] == [(4, 8)] * 3
    expected = encode(tokenizer, one.captions, 40)
    for name in ("input_ids", "attention_mask"):
        found = np.concatenate([getattr(group, name) for group in texts])[:10]
        np.testing.assert_array_equal(found, getattr(expected, name)[:, :8])
        assert not getattr(expected, name)[:, 8:].any() and found.dtype == np.int32
    (first, _), _ = one.loss_batches()
    np.testing.assert_array_equal(first.text[0].input_ids, expected.input_ids[:8:2, :8])
    prompts = [*["un"] * 4, "un gatto nero dorme un gatto nero"]
    batches = list(one.batches_of(prompts))
    assert [batch.tokens.input_ids.shape for batch in batches] == [(4, 16)] * 2
    assert batches[1].tokens.attention_mask.sum() == 4 * 9


def test_loss_batches_pair_each_image_with_its_first_caption(evaluation):
    (first, first_mask), (second, mask) = evaluation.loss_batches()
    assert first_mask.all() and mask.tolist() == [True, False, False, False]
    hashes = [list(hash_words(f"un gatto {n}")) for n in NUMBERS]
    assert first.caption_id.tolist() == hashes[:4]
    assert second.caption_id.tolist() == [hashes[4], [0, 0], [0, 0], [0, 0]]
    assert second.image_id.tolist() == [list(hash_words("a/104")), [0, 0], [0, 0], [0, 0]]
    np.testing.assert_allclose(colours(first.pixel_values), expected_colours(NUMBERS[:4]), atol=3)
    assert second.text[0].input_ids.shape == (4, 6)


def test_a_limit_takes_the_first(config, tokenizer):
    few = make(config, tokenizer, limit=2)
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


def encoded(pixels, form, mode="RGB", **kwargs):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **kwargs)
    return file.getvalue()


def labelled(config, tokenizer, images, size=24):
    """A collection of encoded images without captions."""
    collection = Collection(
        "photos", "folder", [f"x/{n}.png" for n in range(len(images))],
        lambda numbers: [images[n] for n in numbers], "0",
        labels=np.zeros(len(images), np.int32), class_ids=["x"],
    )  # fmt: skip
    return EvaluationSet(config, collection, tokenizer, size)


def pixels_of(evaluation):
    return np.concatenate([b.pixel_values[b.mask] for b in evaluation.image_batches()])


def test_a_collection_without_captions(config, tokenizer):
    one = labelled(config, tokenizer, [jpeg(smooth_image(n)) for n in NUMBERS])
    assert one.labels.tolist() == [0] * 5 and one.class_ids == ["x"] and one.captions == ()
    assert list(one.text_batches()) == []
    np.testing.assert_allclose(colours(pixels_of(one)), expected_colours(NUMBERS), atol=3)
    assert one.thumbnails([1], size=8).shape == (1, 8, 8, 3)
    with pytest.raises(ValueError, match="photos: 0 of 5 images have captions"):
        next(one.loss_batches())


def test_any_texts_in_batches_of_the_same_size(evaluation):
    prompts = ["un gatto", "un cane nero", "cane", "gatto", "un gatto dorme"]
    first, second = evaluation.batches_of(prompts)
    assert first.mask.all() and second.mask.tolist() == [True, False, False, False]
    assert second.tokens.input_ids.tolist() == [[2, 4, 5, 8, 3, 0]] * 4
    assert first.tokens.input_ids[1].tolist() == [2, 4, 7, 6, 3, 0]


def test_a_loss_needs_a_caption_for_each_image(evaluation):
    shifted = dataclasses.replace(evaluation.collection, caption_image=np.arange(10) // 3)
    one = EvaluationSet(evaluation._config, shifted, evaluation._tokenizer, 24)
    with pytest.raises(ValueError, match="a: 4 of 5 images have captions"):
        next(one.loss_batches())


def test_loss_batches_skip_further_captions(evaluation):
    of = np.array([0, 0, 0, 1, 2, 2, 3, 3, 4, 4], np.int32)
    uneven = dataclasses.replace(evaluation.collection, caption_image=of)
    one = EvaluationSet(evaluation._config, uneven, evaluation._tokenizer, 24)
    (first, _), _ = one.loss_batches()
    texts = ["un gatto 100", "un cane 101", "un gatto 102", "un gatto 103"]
    assert first.caption_id.tolist() == [list(hash_words(text)) for text in texts]


def test_lossless_images_keep_their_pixels(config, tokenizer):
    wide, high = smooth_image(1, 24, 31), smooth_image(2, 40, 24)
    images = [encoded(wide, "PNG"), encoded(high, "PNG", "RGBA")]
    images += [encoded(pixels, "WEBP", lossless=True) for pixels in (wide, high)]
    expected = [wide[:, 3:27], high[8:32]] * 2
    np.testing.assert_array_equal(pixels_of(labelled(config, tokenizer, images)), expected)


def test_formats_may_be_mixed_and_named_wrongly(config, tokenizer):
    pixels = smooth_image(100)
    images = [jpeg(pixels), encoded(pixels, "PNG"), encoded(pixels, "WEBP", lossless=True)]
    images += [encoded(pixels, "JPEG", "CMYK", quality=95), encoded(pixels, "PNG", "P")]
    made = colours(pixels_of(labelled(config, tokenizer, images)))
    np.testing.assert_allclose(made, np.repeat(expected_colours([100]), 5, 0), atol=6)
    grey = pixels_of(labelled(config, tokenizer, [encoded(pixels, "PNG", "L")]))
    assert np.ptp(grey, axis=-1).max() == 0


@pytest.mark.parametrize(("broken", "place"), [("", 1), ("none", 6), ("JPEG", 3), ("PNG", 8)])
def test_an_image_that_cannot_be_decoded_is_named(config, tokenizer, broken, place):
    whole = {form: encoded(smooth_image(1), form) for form in ("JPEG", "PNG")}
    images = [whole["JPEG"]] * 9
    images[place] = whole.get(broken, broken.encode())[:100]
    one = labelled(config, tokenizer, images)
    with pytest.raises(ConfigError, match=f"image 'x/{place}.png' cannot be decoded"):
        list(one.image_batches())
    if place == 1:
        with pytest.raises(ConfigError, match=f"image 'x/{place}.png' cannot be decoded"):
            one.thumbnails([8, 0, place])


def test_an_image_that_cannot_be_read_is_named(config, tokenizer, tmp_path):
    one = labelled(config, tokenizer, [b""] * 3)
    gone = dataclasses.replace(
        one.collection, read=lambda numbers: [(tmp_path / f"{n}").read_bytes() for n in numbers]
    )
    with pytest.raises(OSError, match="No such file.*/0'"):
        list(EvaluationSet(config, gone, tokenizer, 24).image_batches())
