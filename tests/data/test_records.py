import dataclasses
import json

import numpy as np
import pytest

from clip_italian.config import ConfigError
from clip_italian.data import records, shards
from clip_italian.data.records import (
    Record,
    hash_words,
    list_sources,
    open_split,
    parse_record,
    serialize_record,
    write_records,
)
from tests.data.conftest import jpeg, record

FULL = Record(
    image=jpeg(np.zeros((2, 3, 3))),
    captions=("un gatto", "è nero"),
    source="wit",
    image_id="7",
    original_captions=("a cat",),
    translator="deepl",
    url="https://example.org/7.jpg",
    license="CC0",
    image_hash=-(2**63),
)


def test_a_record_survives_the_way_through_bytes():
    assert parse_record(serialize_record(FULL)) == FULL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": b"<html>"}, "JPEG"),
        ({"captions": ()}, "at least one caption"),
        ({"captions": ("un gatto", " ")}, "blank"),
        ({"captions": ("e\u0300",)}, "NFC"),
    ],
)
def test_a_wrong_record_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        serialize_record(dataclasses.replace(FULL, **change))


def test_hash_words_are_signed_and_fixed():
    # printf gatto | b2sum -l 64
    assert hash_words("gatto") == (1456329676, 1416218978)
    assert hash_words(b"gatto") == hash_words("gatto")


def test_records_are_read_by_number_across_shards(tmp_path):
    index = write_records(
        tmp_path / "a", {"train": map(record, range(7))}, name="a", shard_bytes=2000
    )
    assert len(index["shards"]["train"]) > 2
    file = open_split(tmp_path, "a", "train")
    assert len(file) == 7
    read = [parse_record(data).image_id for data in file.read(np.array([6, 0, 3, 3, 1]))]
    assert read == ["6", "0", "3", "3", "1"]
    for wrong in (7, -1):
        with pytest.raises(IndexError, match="of 7"):
            file.read([wrong])


def test_opening_reads_no_shard(data_dir, monkeypatch):
    def refuse(*args):
        raise AssertionError("a shard was opened")

    monkeypatch.setattr(shards, "ArrayRecordReader", refuse)
    file = open_split(data_dir, "a", "train")
    assert len(file) == 10
    with pytest.raises(AssertionError, match="was opened"):
        file.read([0])


def test_tfds_reads_the_records(data_dir):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(data_dir / "a")
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "train": 10,
        "validation": 5,
    }
    example = builder.as_data_source(split="validation")[1]
    assert list(example["captions"]) == [b"un gatto 101", b"un cane 101"]
    assert example["image"].shape == (40, 48, 3)
    assert example["source"] == b"a"


def test_fingerprint_is_that_of_the_contents(tmp_path):
    def fingerprint(folder, *captions):
        made = [record(i, captions=[text]) for i, text in enumerate(captions)]
        return write_records(tmp_path / folder, {"train": made}, name="a")["fingerprint"]

    first = fingerprint("1", "un gatto", "un cane")
    assert fingerprint("2", "un gatto", "un cane") == first
    assert fingerprint("3", "un gatto", "un topo") != first
    assert open_split(tmp_path, "1", "train").fingerprint == first


def test_a_write_that_fails_leaves_the_old_version(tmp_path):
    def broken():
        yield record(0)
        raise KeyboardInterrupt

    def also(folder, index):
        assert index["records"] == {"train": 1}
        (folder / "vocab.txt").write_bytes(b"x")

    write_records(tmp_path / "a", {"train": [record(5)]}, name="a", also=also)
    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path / "a", {"train": broken()}, name="a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (data,) = open_split(tmp_path, "a", "train").read([0])
    assert parse_record(data).image_id == "5"
    assert (tmp_path / "a" / "vocab.txt").read_bytes() == b"x"

    write_records(tmp_path / "a", {"train": [record(6)]}, name="a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert not (tmp_path / "a" / "vocab.txt").exists()


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("important")
    with pytest.raises(FileExistsError, match="holds no records"):
        write_records(tmp_path / "a", {"train": [record(0)]}, name="a")
    assert (tmp_path / "a" / "thesis.tex").read_text() == "important"


@pytest.mark.parametrize(
    ("name", "splits", "message"),
    [
        ("A-b", {"train": [record(0)]}, "lower-case"),
        ("a", {"test": [record(0)]}, "test"),
        ("a", {"train": []}, "no records"),
    ],
)
def test_a_wrong_write_is_refused(tmp_path, name, splits, message):
    with pytest.raises(ValueError, match=message):
        write_records(tmp_path / "a", splits, name=name)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_source_lists_those_found(data_dir):
    assert list_sources(data_dir) == ["a", "b"]
    with pytest.raises(ConfigError, match=r"sources: no records of 'wit' .*found there: a, b"):
        open_split(data_dir, "wit", "train")


def test_an_empty_split_is_refused(tmp_path):
    write_records(tmp_path / "a", {"train": [record(0)], "validation": []}, name="a")
    with pytest.raises(ConfigError, match="sources: 'a' has no records in its validation split"):
        open_split(tmp_path, "a", "validation")


def test_a_cut_shard_and_a_newer_format_are_refused(tmp_path):
    write_records(tmp_path / "a", {"train": [record(0)]}, name="a")
    (shard,) = (tmp_path / "a").glob("*.array_record-*")
    contents = shard.read_bytes()
    shard.write_bytes(contents[:-1])
    with pytest.raises(ConfigError, match="should have 131072 bytes, found 131071"):
        open_split(tmp_path, "a", "train")
    shard.unlink()
    with pytest.raises(ConfigError, match="found no file"):
        open_split(tmp_path, "a", "train")
    shard.write_bytes(contents)
    index = json.loads((tmp_path / "a" / records.INDEX_FILE).read_text())
    (tmp_path / "a" / records.INDEX_FILE).write_text(json.dumps({**index, "format_version": 2}))
    with pytest.raises(ConfigError, match="record format 2, this code reads 1"):
        open_split(tmp_path, "a", "train")
