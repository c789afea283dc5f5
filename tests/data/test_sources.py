import dataclasses
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from clip_italian.config import ConfigError
from clip_italian.data import sources
from clip_italian.data.records import parse_record, write_records
from clip_italian.data.sources import data_fingerprint, local_data_dir, open_sources
from tests.data.conftest import record


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that answers to gs://bucket."""
    folder = tmp_path / "bucket"
    write_records(folder / "a", {"train": map(record, range(6))}, name="a", shard_bytes=2000)
    monkeypatch.setattr(
        sources.epath, "Path", lambda url: Path(str(url).replace("gs://bucket", str(folder)))
    )
    return folder


@pytest.fixture
def remote(config, tmp_path):
    return dataclasses.replace(
        config.data, data_dir="gs://bucket", data_cache=str(tmp_path / "cache"), sources=("a",)
    )


def test_local_folders_are_used_in_place(config, data_dir):
    assert local_data_dir(config.data, "a") == data_dir
    assert [len(file) for file in open_sources(config.data, "train")] == [10, 4]


def test_remote_records_are_copied_whole_once(bucket, remote):
    (file,) = open_sources(remote, "train")
    original = open_sources(dataclasses.replace(remote, data_dir=str(bucket)), "train")
    assert [parse_record(data).image_id for data in file.read([5, 0])] == ["5", "0"]
    assert data_fingerprint([file]) == data_fingerprint(original)
    for shard in bucket.glob("a/*.array_record-*"):
        shard.unlink()  # a second opening must not ask for them
    assert len(open_sources(remote, "train")[0]) == 6


def test_a_broken_off_copy_goes_on(bucket, remote):
    open_sources(remote, "train")
    folder = local_data_dir(remote, "a") / "a"
    (folder / "records.json").unlink()
    first, *_, last = sorted(folder.glob("*.array_record-*"))
    last.unlink()
    kept = first.stat().st_mtime_ns
    assert len(open_sources(remote, "train")[0]) == 6
    assert last.exists() and first.stat().st_mtime_ns == kept


def test_new_contents_get_a_copy_of_their_own(bucket, remote):
    old = local_data_dir(remote, "a")
    write_records(bucket / "a", {"train": [record(9)]}, name="a")
    assert local_data_dir(remote, "a") != old
    assert len(open_sources(remote, "train")[0]) == 1


def test_a_full_disk_is_refused_before_copying(bucket, remote, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 5, 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match=r"data_cache: .* has 5 bytes free, .* needs"):
        local_data_dir(remote, "a")


def test_a_shard_that_arrives_changed_is_refused(bucket, remote):
    shard = sorted(bucket.glob("a/*.array_record-*"))[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match=r"data_dir: .*is not the shard"):
        local_data_dir(remote, "a")


def test_an_unknown_remote_source_lists_those_found(bucket, remote):
    with pytest.raises(ConfigError, match=r"sources: no records of 'wit' .*\['a'\]"):
        local_data_dir(remote, "wit")


def test_the_fingerprint_tells_splits_orders_and_contents_apart(config):
    train, validation = (open_sources(config.data, split) for split in ("train", "validation"))
    prints = {data_fingerprint(files) for files in (train, train[::-1], validation, train[:1])}
    assert len(prints) == 4
    assert data_fingerprint(train) == data_fingerprint(open_sources(config.data, "train"))
