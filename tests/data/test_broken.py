"""Records that cannot be decoded: what stands in their place, and when there are too many."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from clip_italian.config import ConfigError
from clip_italian.data import records
from clip_italian.data.broken import Broken
from clip_italian.data.records import hash_words, write_records
from tests.data.conftest import NUMBERED, change, jpeg, numbered_record, open_training, smooth_image

STEPS = 6  # of 16: two epochs
REAL = records.serialize_record


def pictures(mode):
    file = io.BytesIO()
    Image.new(mode, (30, 30)).save(file, "JPEG")
    return file.getvalue()


DAMAGED = {
    3: jpeg(smooth_image(3, 200, 200))[:3000],  # cut short
    11: b"<!DOCTYPE html><html><body>404</body></html>",
    12: b"",
    30: b"\0" * 4000,
}
ODD = {7: pictures("CMYK"), 8: pictures("L"), 9: jpeg(np.full((1, 1, 3), 200))}  # and sound


def write(folder, images, monkeypatch, count=NUMBERED):
    """Source n with these images in place of its own, which `serialize_record` would refuse."""

    def serialize(record):
        example = records._Example.FromString(REAL(record))
        number = int(record.image_id)
        if number in images:
            example.features.feature["image"].bytes_list.value[0] = images[number]
        return example.SerializeToString(deterministic=True)

    monkeypatch.setattr(records, "serialize_record", serialize)
    write_records(folder / "n", {"train": map(numbered_record, range(count))}, name="n")
    return str(folder)


def take(training, steps=STEPS, first=0, skipped=()):
    batches = training.batches_from(first, skipped)
    try:
        return list(itertools.islice(batches, steps))
    finally:
        batches.close()


def test_damaged_records_are_replaced_as_the_order_says(
    numbered, tokenizer, tmp_path, monkeypatch, caplog
):
    config = change(numbered, data_dir=write(tmp_path, {**DAMAGED, **ODD}, monkeypatch))
    training = open_training(config, tokenizer)
    found = take(training)
    plain = open_training(numbered, tokenizer).selection  # of whole records
    order, index = plain.order, plain.captions[0]
    replaced = 0
    for step, batch in enumerate(found):
        chosen = plain.at(step)
        expected = chosen.record.copy()
        for row in np.flatnonzero(np.isin(expected, list(DAMAGED))):
            place = (int(chosen.position[row]), 0)
            room = -(-index.lengths(expected[[row]])[0] // 4) * 4  # groups are multiples of 4
            tried = (order.replacement(*place, n) for n in range(100))
            expected[row] = next(
                n for n in tried if n not in DAMAGED and index.lengths(n[None])[0] <= room
            )
            replaced += 1
        np.testing.assert_array_equal(batch.image_id, [hash_words(f"n/{n}") for n in expected])
        sound = ~np.isin(expected, list(ODD))
        pixels = np.asarray(batch.pixel_values)
        shown = np.round((pixels.mean((1, 2, 3)) - 5) / 5)
        np.testing.assert_array_equal(shown[sound], expected[sound])
        assert training.names_of(step) == [f"n/{n}" for n in expected]
    assert replaced == STEPS * 16 * len(DAMAGED) // NUMBERED  # each once in an epoch
    assert {name for name, _ in training.broken} == {f"n/{n}" for n in DAMAGED}
    reasons = dict(training.broken)
    assert "<!DOCTYP" in reasons["n/11"] and "no whole picture" in reasons["n/3"]
    assert sum("is replaced" in message for message in caplog.messages) == len(DAMAGED)
    # A process that starts later, and knows of none yet, shows the same.
    later = take(open_training(config, tokenizer), 2, first=4)
    for one, other in zip(later, found[4:], strict=True):
        np.testing.assert_array_equal(one.image_id, other.image_id)
        np.testing.assert_array_equal(one.pixel_values, other.pixel_values)


def test_a_record_whose_bytes_changed_is_replaced(numbered, tokenizer, tmp_path, monkeypatch):
    config = change(numbered, data_dir=write(tmp_path, {}, monkeypatch))
    open_training(config, tokenizer)  # indexes the captions while all are whole
    (shard,) = (tmp_path / "n").glob("*array_record-*")
    data = bytearray(shard.read_bytes())
    (whole,) = records.open_split(tmp_path, "n", "train").read([20])
    data[data.index(whole) + len(whole) // 2] ^= 4
    shard.write_bytes(data)
    training = open_training(config, tokenizer)
    ids = np.concatenate([batch.image_id for batch in take(training, 3)])
    assert list(hash_words("n/20")) not in ids.tolist()
    ((name, reason),) = training.broken
    assert name == "record 20 of n/train" and "hash mismatch" in reason


@pytest.mark.parametrize("damaged", [9, 10])
def test_more_than_one_in_a_hundred_end_the_run(
    numbered, tokenizer, tmp_path, monkeypatch, damaged
):
    images = {n: b"<html>" for n in range(0, 2 * damaged, 2)}
    config = change(numbered, data_dir=write(tmp_path, images, monkeypatch))
    if damaged < 10:  # of 48 records: so few say little
        assert len(take(open_training(config, tokenizer))) == STEPS
        return
    with pytest.raises(ConfigError, match=r"sources: 10 of \d+ records read so far .* n/\d+: "):
        take(open_training(config, tokenizer))


@pytest.mark.parametrize(
    ("broken", "sound", "total", "stops"),
    [
        (9, 0, 100, False),  # too few to say
        (10, 0, 999, True),  # more than one in a hundred of all, whatever comes
        (10, 0, 1000, False),
        (30, 500, 10**6, False),  # 6% of the first few, but 1% of 3,000
        (31, 500, 10**6, True),
        (31, 3069, 10**6, False),  # 1% of those read
        (32, 3069, 10**6, True),
        (100, 9900, 10**6, False),
        (101, 9898, 10**6, True),
    ],
)
def test_too_many_by_hand(broken, sound, total, stops):
    found = Broken()
    found.note_read(np.zeros(sound, int), np.arange(sound))
    for number in range(broken):
        found.note_broken(f"n/{number}", "why")
    if not stops:
        return found.check(total)
    with pytest.raises(ConfigError, match=f"{broken} of {broken + sound} records.*n/0: why; n/1"):
        found.check(total)


def test_records_count_once():
    found = Broken()
    found.note_read(np.array([0, 1, 0, 1]), np.array([5, 5, 2, 900]))
    found.note_read(np.array([1, 0]), np.array([900, 6]))
    assert found.sound == 5


def test_skipped_batches_are_left_out_of_the_order(numbered, tokenizer):
    numbered = change(numbered, augment="paper")
    whole = take(open_training(numbered, tokenizer))
    training = open_training(numbered, tokenizer)
    for got, expected in zip(take(training, 4, skipped=(3, 1)), (0, 2, 4, 5), strict=True):
        np.testing.assert_array_equal(got.image_id, whole[expected].image_id)
        np.testing.assert_array_equal(got.pixel_values, whole[expected].pixel_values)
    (later,) = take(training, 1, first=2, skipped=[1, 3])
    np.testing.assert_array_equal(later.image_id, whole[4].image_id)
    names = training.names_of(2, (1, 3))
    np.testing.assert_array_equal(later.image_id, [hash_words(name) for name in names])


def test_every_host_names_the_whole_batch(numbered, tokenizer):
    whole = open_training(numbered, tokenizer, shares=4)
    for process in (0, 1):
        options = {"shares": 4, "process_index": process, "process_count": 2}
        assert open_training(numbered, tokenizer, **options).names_of(5) == whole.names_of(5)
    assert len(whole.names_of(5)) == 16


def test_names_of_damaged_records(numbered, tokenizer, monkeypatch):
    training = open_training(numbered, tokenizer)

    def read(self, indices):
        raise RuntimeError("hash mismatch")

    monkeypatch.setattr(type(training.sources[0]), "read", read)
    assert training.names_of(0)[0].startswith("record ")
