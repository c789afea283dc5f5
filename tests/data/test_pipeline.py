import itertools

import numpy as np
import pytest

from clip_italian.config import ConfigError
from clip_italian.data.pipeline import make_order
from clip_italian.data.records import Record, hash_words, parse_record, write_records
from clip_italian.data.sources import open_sources
from clip_italian.data.tokens import encode
from tests.data.conftest import change, jpeg, open_training, record, smooth_image

SIZE = 24


def take(config, tokenizer, steps, first=0, **processes):
    batches = open_training(config, tokenizer, **processes).batches_from(first)
    try:
        return list(itertools.islice(batches, steps))
    finally:
        batches.close()


def assert_equal(first, second):
    for one, other in zip(first, second, strict=True):
        for a, b in zip(
            [*one.text[0], one.image_id, one.caption_id, one.pixel_values],
            [*other.text[0], other.image_id, other.caption_id, other.pixel_values],
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def steps():
    return 6  # 48 positions: the epoch of 20 is passed twice


def test_a_batch_holds_what_the_order_says(config, tokenizer):
    config = change(config, augment="none")
    (batch,) = take(config, tokenizer, 1, first=2)
    sources = open_sources(config.data, "train")
    order = make_order(config, sources)
    positions = np.arange(16, 24)
    places = order.places(positions)
    found = [
        parse_record(sources[s].read([r])[0])
        for s, r in zip(places.source, places.record, strict=True)
    ]
    chosen = (order.caption_choice(positions) >> np.uint64(1)) % np.uint64(2)
    captions = [record.captions[c] for record, c in zip(found, chosen.astype(int), strict=True)]
    assert batch.image_id.tolist() == [
        list(hash_words(f"{record.source}/{record.image_id}")) for record in found
    ]
    assert batch.caption_id.tolist() == [list(hash_words(caption)) for caption in captions]
    expected = encode(tokenizer, captions, 6)
    np.testing.assert_array_equal(batch.text[0].input_ids, expected.input_ids)
    assert batch.text[0].attention_mask.dtype == batch.image_id.dtype == np.int32
    assert batch.pixel_values.shape == (8, SIZE, SIZE, 3)
    assert batch.pixel_values.dtype == np.uint8
    for pixels, record_found in zip(batch.pixel_values, found, strict=True):
        average = smooth_image(int(record_found.image_id))[:, 4:44].mean((0, 1))
        np.testing.assert_allclose(pixels.mean((0, 1)), average, atol=3)


def test_batches_do_not_depend_on_threads(config, tokenizer, steps):
    one, four = (
        take(change(config, reader_threads=threads), tokenizer, steps) for threads in (1, 4)
    )
    assert_equal(one, four)


def test_two_hosts_make_one_batch(config, tokenizer, steps):
    whole = take(config, tokenizer, steps)
    halves = [
        take(config, tokenizer, steps, shares=2, process_index=k, process_count=2) for k in (0, 1)
    ]
    for step, (first, second) in enumerate(zip(*halves, strict=True)):
        for name in ("image_id", "caption_id", "pixel_values"):
            joined = np.concatenate([getattr(first, name), getattr(second, name)])
            np.testing.assert_array_equal(joined, getattr(whole[step], name))
        assert len(first.image_id) == 4
        ids = np.concatenate([first.text[0].input_ids, second.text[0].input_ids])
        np.testing.assert_array_equal(ids, whole[step].text[0].input_ids)


def test_starting_later_is_skipping(config, tokenizer, steps):
    assert_equal(take(config, tokenizer, steps)[4:], take(config, tokenizer, 2, first=4))


def test_resumed_at_any_step_no_example_is_twice_or_left_out(numbered, tokenizer):
    """Epochs of three steps: at their ends, and within."""
    whole = take(numbered, tokenizer, 6)
    for first in range(6):
        rest = take(numbered, tokenizer, 6 - first, first=first)
        assert_equal(whole[first:], rest)
        ids = [tuple(row) for batch in whole[:first] + rest for row in batch.image_id.tolist()]
        assert len(set(ids[:48])) == len(set(ids[48:])) == 48


def test_seeds_change_everything(config, tokenizer):
    first, second = (take(change(config, seed=seed), tokenizer, 1)[0] for seed in (3, 4))
    assert (first.image_id != second.image_id).any()
    assert (first.pixel_values != second.pixel_values).any()


def test_epochs_of_one_record_differ_in_caption_and_augmentation(tmp_path, tokenizer, config):
    write_records(
        tmp_path / "one",
        {"train": [record(0, "one", ["un gatto", "un cane", "dorme", "nero"])]},
        name="one",
    )
    config = change(config, data_dir=str(tmp_path), sources=("one",), weights=(1.0,))
    (batch,) = take(change(config, batch_size=32), tokenizer, 1)
    assert len(np.unique(batch.image_id, axis=0)) == 1
    assert len(np.unique(batch.caption_id, axis=0)) == 4
    assert len(np.unique(batch.pixel_values.reshape(32, -1), axis=0)) == 32


def test_a_broken_record_is_replaced_by_position(tmp_path, tokenizer, config, caplog):
    made = [record(i) for i in range(6)]
    whole = jpeg(smooth_image(2))
    start_of_scan = whole.index(b"\xff\xda")
    made[2] = Record(b"\xff\xd8\xff" + b"no jpeg at all", ("rotto",), "a", "2")
    made[4] = Record(whole[: start_of_scan - 30], ("rotto",), "a", "4")
    write_records(tmp_path / "a", {"train": made}, name="a")
    config = change(config, data_dir=str(tmp_path), sources=("a",), weights=(1.0,))
    batches = take(config, tokenizer, 5)
    broken = [hash_words("a/2"), hash_words("a/4")]
    ids = {tuple(row) for batch in batches for row in batch.image_id.tolist()}
    assert len(ids) == 4 and not ids & set(broken)
    assert sum("is replaced" in message for message in caplog.messages) == 2
    assert_equal(batches[3:], take(config, tokenizer, 2, first=3))


def test_a_source_of_broken_records_is_an_error(tmp_path, tokenizer, config):
    broken = Record(b"\xff\xd8\xff" + b"no jpeg at all", ("rotto",), "a", "0")
    write_records(tmp_path / "a", {"train": [broken]}, name="a")
    config = change(config, data_dir=str(tmp_path), sources=("a",), weights=(1.0,))
    with pytest.raises(Exception, match="cannot be decoded; prepare 'a' again"):
        take(config, tokenizer, 1)


def test_wrong_weights_are_refused(config, tokenizer):
    with pytest.raises(ConfigError, match="weights"):
        open_training(change(config, weights=(1.0, 0.1)), tokenizer)
