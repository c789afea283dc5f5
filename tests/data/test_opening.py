import io
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_italian.config import ConfigError
from clip_italian.data import feature_cache, pipeline
from clip_italian.data.opening import cache_features, describe_groups, open_data
from clip_italian.data.records import Record, hash_words, record_image, write_records
from tests.data.conftest import (
    change,
    numbered_record,
    numbers_in_tokens,
    record,
)

SIZE = 24


class Sizes:
    image_size, vocab_size, max_positions = SIZE, 9, 40
    image_mean, image_std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def text_flops(self, lengths):
        return 10.0 * lengths


class Pools:
    """Towers that give the mean colour, and the sum and number of tokens; they count."""

    def __init__(self):
        self.images = self.captions = 0
        self.calls = []

    def image(self, pixels):
        self.images += len(pixels)
        self.calls.append(pixels.shape)
        return pixels.reshape(len(pixels), -1).astype(np.float64)[:, ::131]

    def text(self, group):
        self.captions += len(group.input_ids)
        self.calls.append(group.input_ids.shape)
        return np.stack([group.input_ids.sum(1), group.attention_mask.sum(1)], 1).astype(float)


@pytest.fixture
def ready(numbered, tokenizer, tmp_path):
    """A config of 48 numbered records of its own, and a validation split."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    splits = {
        "train": map(numbered_record, range(48)),
        "validation": map(numbered_record, range(48, 51)),
    }
    write_records(tmp_path / "data" / "n", splits, name="n")
    return change(
        numbered, data_dir=str(tmp_path / "data"), tokenizer=str(tmp_path / "tokenizer"),
        flip=True, cached_views=2, eval_batch_size=10,
        data_cache=str(tmp_path / "cache"),
    )  # fmt: skip


def quick_pictures(read, steps, rows, *, augment, image_size, threads):
    """In place of `image_views` and `training_images`, whose programs take seconds to build."""
    for step in steps:
        records, draws = read(step)
        pictures = []
        for data, crop in zip(records, draws.crop, strict=True):
            picture = Image.open(io.BytesIO(record_image(data))).resize((image_size, image_size))
            shift = 0 if augment == "none" else int(crop[0] * 200)
            pictures.append(np.asarray(picture) + np.uint8(shift))
        yield np.stack(pictures)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(
        feature_cache,
        "image_views",
        lambda read, n, *a, **k: quick_pictures(read, range(n), *a, **k),
    )
    monkeypatch.setattr(
        pipeline,
        "training_images",
        lambda read, first, *a, **k: quick_pictures(read, itertools.count(first), *a, **k),
    )


def cache(config, pools, *, vision: int | None = None, text: int | None = None, **more):
    data = open_data(config, Sizes(), shares=2)
    options = {"fingerprints": {"vision": "v", "text": "t"}, **more}
    return cache_features(
        config,
        data,
        pool_image=pools.image,
        pool_text=pools.text,
        frozen_until={"vision": vision, "text": text},
        **options,
    )


def take(data, steps, first=0, skipped=()):
    batches = data.batches_from(first, skipped)
    try:
        return list(itertools.islice(batches, steps))
    finally:
        batches.close()


def numbers(batch, shares=2):
    parts = [numbers_in_tokens(group).reshape(shares, -1) for group in batch.text]
    return np.hstack(parts).ravel()


@pytest.mark.parametrize("shares", [1, 2, 4])
def test_pairs_stay_together(ready, shares, request):
    if shares < 4:
        request.getfixturevalue("quick")
    config = change(ready, augment="none", flip=False)
    data = open_data(config, Sizes(), shares=shares)
    groups = set()
    for batch in take(data, 3):
        shown = np.round((batch.pixel_values.mean((1, 2, 3)) - 5) / 5).astype(int)
        np.testing.assert_array_equal(shown, numbers(batch, shares))
        expected = [hash_words(f"n/{n}") for n in shown]
        np.testing.assert_array_equal(batch.image_id, expected)
        assert all(len(group.input_ids) % shares == 0 for group in batch.text)
        groups.add(len(batch.text))
    assert max(groups) > 1


def test_cached_batches_hold_the_same_examples(ready):
    pools = Pools()
    data = cache(ready, pools, vision=2, text=3)
    assert pools.images == 2 * 50 and pools.captions == 50  # 48, in batches of 10
    assert {shape for shape in pools.calls if len(shape) == 4} == {(10, SIZE, SIZE, 3)}
    plain = take(open_data(ready, Sizes(), shares=2), 5)
    found = take(data, 5)
    for step, (ours, theirs) in enumerate(zip(found, plain, strict=True)):
        np.testing.assert_array_equal(ours.image_id, theirs.image_id)
        np.testing.assert_array_equal(ours.caption_id, theirs.caption_id)
        assert (ours.pixel_values is None) == (ours.image_features is not None) == (step < 2)
        assert (ours.text == ()) == (ours.text_features is not None) == (step < 3)
        parts = [pools.text(group).reshape(2, -1, 2) for group in theirs.text]
        expected = np.hstack(parts).reshape(-1, 2)
        if step < 3:
            np.testing.assert_array_equal(ours.text_features, expected)
            assert ours.text_features.dtype == np.float32
        if step >= 2:
            np.testing.assert_array_equal(ours.pixel_values, theirs.pixel_values)
        if step >= 3:
            np.testing.assert_array_equal(numbers(ours), numbers(theirs))
    for later in (1, 2, 4):
        again = take(data, 1, first=later)[0]
        np.testing.assert_array_equal(again.image_id, plain[later].image_id)
        assert (again.pixel_values is None) == (later < 2)


def test_stored_views_are_those_that_would_be_computed(ready):
    config = change(ready, augment="none", flip=False, cached_views=1)
    pools = Pools()
    data = cache(config, pools)
    plain = take(open_data(config, Sizes(), shares=2), 2)
    for ours, theirs in zip(take(data, 2), plain, strict=True):
        np.testing.assert_array_equal(ours.image_features, pools.image(theirs.pixel_values))


def test_views_differ_and_rest_on_seed_record_and_view_alone(tmp_path, ready, quick):
    pictures = [record(n, "n", ["un gatto"]) for n in range(6)]
    for name in ("one", "two"):
        splits = {"train": pictures if name == "one" else pictures[:5], "validation": pictures[:1]}
        write_records(tmp_path / name / "n", splits, name="n")
    config = change(
        ready, data_dir=str(tmp_path / "one"), cached_views=3, batch_size=2, augment="light"
    )
    (first,) = cache(config, Pools()).training.cached.images
    assert len(first) == 3
    for record_number in range(6):
        assert len({view[record_number].tobytes() for view in first}) == 3
    # Another number of records, views and steps, another batch size: the same pictures.
    other = change(config, data_dir=str(tmp_path / "two"), cached_views=2, eval_batch_size=4)
    (second,) = cache(other, Pools()).training.cached.images
    for a, b in zip(first[:2], second, strict=True):
        np.testing.assert_array_equal(a[:5], b)
    shown = [first_view(batch, first) for batch in take(cache(config, Pools()), 30)]
    counts = np.bincount(np.concatenate(shown), minlength=3)
    assert counts.min() > 60 / 3 - 15


def first_view(batch, views):
    """Which view each row shows."""
    stacked = np.stack(views)  # [views, records, width]
    same = (stacked[:, :, None] == batch.image_features).all(-1)  # [views, records, rows]
    assert (same.sum((0, 1)) == 1).all()
    return same.any(1).argmax(0)


def test_nothing_is_encoded_twice_or_after_the_thaw(ready, quick):
    cache(ready, Pools(), vision=2, text=2)
    pools = Pools()
    cache(ready, pools, vision=2, text=2)  # stored
    assert pools.calls == []
    fresh = {"vision": "other", "text": "other"}
    cache(ready, pools, vision=2, text=3, first_step=3, fingerprints=fresh)  # resumed behind
    cache(ready, pools, vision=0, text=0, fingerprints=fresh)  # nothing is ever frozen
    cache(change(ready, cached_views=0), pools, fingerprints=fresh)
    assert pools.calls == []
    data = cache(ready, pools, vision=2, text=3, first_step=2, fingerprints=fresh)
    assert pools.images == 0 and pools.captions == 50
    (batch,) = take(data, 1, first=2)
    assert batch.pixel_values is not None and batch.text_features is not None


def test_other_facts_are_encoded_again(ready, tmp_path, quick):
    cache(ready, Pools())
    again = []
    for config, options in (
        (ready, {"fingerprints": {"vision": "w", "text": "t"}}),
        (change(ready, seed=4), {}),
        (change(ready, augment="paper"), {}),
        (change(ready, augment="light"), {}),
        (change(ready, dtype="bfloat16"), {}),
        (change(ready, cached_views=3), {}),  # one view more
        (ready, {"fingerprints": {"vision": "v", "text": "u"}}),
        (change(ready, max_length=18), {}),
    ):
        pools = Pools()
        cache(config, pools, **options)
        again.append((pools.images, pools.captions))
    assert again == [
        (100, 0), (100, 0), (100, 0), (100, 0), (100, 50), (50, 0), (0, 50), (0, 50)
    ]  # fmt: skip
    plain = change(ready, augment="none", flip=False, cached_views=1)
    cache(plain, Pools())
    pools = Pools()
    cache(change(plain, seed=4), pools)  # where nothing is drawn, the seed changes nothing
    assert pools.calls == []
    moved = change(ready, data_dir=str(tmp_path / "other"))
    splits = {"train": map(numbered_record, range(1, 48)), "validation": [numbered_record(0)]}
    write_records(tmp_path / "other" / "n", splits, name="n")
    cache(moved, pools)
    assert (pools.images, pools.captions) == (100, 50)


def test_several_views_of_one_crop_are_refused(ready):
    config = change(ready, augment="none", flip=False, cached_views=2)
    with pytest.raises(ConfigError, match=r"cached_views = 2 .* give 1, or an augmentation"):
        cache(config, Pools())


def test_a_killed_encoding_goes_on(ready, monkeypatch, quick):
    monkeypatch.setattr(feature_cache.features, "BLOCK", 16)
    config = change(ready, cached_views=1)
    pools = Pools()

    def killed(pixels):
        if pools.images == 30:
            raise KeyboardInterrupt
        return Pools.image(pools, pixels)

    with pytest.raises(KeyboardInterrupt):
        cache_with(config, killed, pools.text)
    again = Pools()
    cache(config, again)
    assert again.images == 40  # from row 16 on, in batches of 10: two of three blocks of 16
    whole = Pools()
    other = cache(config, whole, fingerprints={"vision": "fresh", "text": "t"})
    (one,), (two,) = cache(config, again).training.cached.images, other.training.cached.images
    np.testing.assert_array_equal(one[0], two[0])


def cache_with(config, image, text):
    return cache_features(
        config,
        open_data(config, Sizes(), shares=2),
        pool_image=image,
        pool_text=text,
        frozen_until={"vision": None, "text": None},
        fingerprints={"vision": "v", "text": "t"},
    )


def test_broken_pictures_are_replaced_as_without_cache(ready, tmp_path, caplog):
    made = [numbered_record(n) for n in range(48)]
    for n in (3, 4):
        broken = Record(b"\xff\xd8\xff" + b"no jpeg at all", made[n].captions, "n", str(n))
        made[n] = broken
    splits = {"train": made, "validation": made[:1]}
    write_records(tmp_path / "broken" / "n", splits, name="n")
    config = change(ready, data_dir=str(tmp_path / "broken"), cached_views=1, batch_size=8)
    data = cache(config, Pools())
    assert sum("is left out" in message for message in caplog.messages) == 2
    plain = take(open_data(config, Sizes(), shares=2), 12)
    for ours in (data, cache(config, Pools())):  # encoded, and found stored
        found = take(ours, 12)
        for batch, theirs in zip(found, plain, strict=True):
            np.testing.assert_array_equal(batch.image_id, theirs.image_id)
            np.testing.assert_array_equal(batch.caption_id, theirs.caption_id)
            assert np.isfinite(batch.image_features).all()
    assert [name for name, _ in data.training.broken] == ["n/3", "n/4"]
    skipped = take(data, 2, skipped=(1,))
    np.testing.assert_array_equal(skipped[1].image_id, plain[2].image_id)
    np.testing.assert_array_equal(skipped[1].image_features, found[2].image_features)


def test_too_many_broken_pictures_end_the_encoding(ready, tmp_path):
    made = [numbered_record(n) for n in range(48)]
    for n in range(10):
        made[n] = Record(b"\xff\xd8\xff no jpeg", made[n].captions, "n", str(n))
    splits = {"train": made, "validation": made[-1:]}
    write_records(tmp_path / "broken" / "n", splits, name="n")
    config = change(ready, data_dir=str(tmp_path / "broken"), cached_views=1)
    with pytest.raises(ConfigError, match=r"sources: 10 of 48 records read so far \(20.8%\)"):
        cache(config, Pools())


def test_features_go_to_the_cache_where_records_cannot_be_written(ready, tmp_path, quick):
    (Path(ready.data.data_dir) / "n" / "derived").write_text("no folder")
    cache(change(ready, cached_views=1), Pools())
    found = sorted(path.parent.name[:12] for path in tmp_path.glob("cache/derived/n/*/*.json"))
    assert found == ["captions-tra", "image-train-", "text-train-" + found[2][11:]]
    pools = Pools()
    cache(change(ready, cached_views=1), pools)
    assert pools.calls == []


def test_several_hosts_compute_their_features(ready):
    data = open_data(ready, Sizes(), shares=2, process_index=1, process_count=2)
    with pytest.raises(ConfigError, match="cached_views = 2 is not allowed on several hosts"):
        cache_features(
            ready, data, pool_image=Pools().image, pool_text=Pools().text,
            frozen_until={"vision": None, "text": None}, fingerprints={},
        )  # fmt: skip


def test_a_batch_that_does_not_split_is_refused(ready):
    with pytest.raises(ConfigError, match=r"batch_size = 16 does not split over 3 shares"):
        open_data(ready, Sizes(), shares=3)


def test_length_groups_in_words(ready):
    config = change(ready, micro_batch=8)
    assert describe_groups(config, Sizes(), 2) is None  # no index yet
    plan = open_data(config, Sizes(), shares=4).training.selection.plan
    found, sizes = describe_groups(config, Sizes(), 2), (plan.rows, plan.lengths)
    assert found is not None and found.mean < found.padded <= 20
    said = found.text
    groups = ", ".join(f"{n} of {length}" for n, length in zip(*sizes, strict=True))
    assert said.startswith(f"Captions of a batch by length in tokens: {groups}; ")
    assert "slots are padding" in said and said.endswith("are padded to 20")
    assert describe_groups(change(config, data_dir="gs://bucket"), Sizes(), 2) is None
    assert describe_groups(change(config, sources=("gone",)), Sizes(), 2) is None
    assert describe_groups(change(config, tokenizer=""), Sizes(), 2) is None


def test_words_need_no_tensorflow():
    code = "import sys; sys.modules['tensorflow'] = None; import clip_italian.data.text_plan"
    subprocess.run([sys.executable, "-c", code], check=True)
