"""The record format: one image with its captions, in TFDS-readable ArrayRecord shards.

A source is a folder `<data_dir>/<source>/` that holds

    <source>-<split>.array_record-00000-of-00002 ...   one serialized tf.train.Example a record
    dataset_info.json, features.json                   what tfds.builder_from_directory reads
    records.json                                       our index: version, counts, checksums

TensorFlow is never imported.
"""

import dataclasses
import hashlib
import json
import re
import shutil
import struct
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from tensorflow_datasets.proto import tf_example_generated_pb2

from clip_italian.config import ConfigError
from clip_italian.data.shards import RecordFile, write_shards

FORMAT_VERSION = 1
INDEX_FILE = "records.json"
SPLITS = ("train", "validation")
# Of one encoded picture, anywhere: a few kilobytes can hold 400 megapixels.
MAX_IMAGE_BYTES = 20 * 1000 * 1000
MAX_IMAGE_PIXELS = 50 * 1000 * 1000

# Google's protocol buffer code makes its classes at run time, where no type checker sees them.
_Example: Any = vars(tf_example_generated_pb2)["Example"]


@dataclasses.dataclass(frozen=True)
class Record:
    """One image with its captions.

    Attributes:
      image: JPEG bytes.
      captions: at least one, Unicode NFC, none of them blank.
      source: where the image comes from (`wit`, `mscoco_it`, ...).
      image_id: unique within its source.
      original_captions: what each caption was translated from, in their order, "" for one that is
        native; empty when all are.
      translator: who or what translated; empty when the captions are native.
      url: where the image was found; may be empty.
      license: as stated by the source; may be empty.
      image_hash: int64 perceptual hash; equal pictures have near-equal hashes.
    """

    image: bytes
    captions: Sequence[str]
    source: str
    image_id: str
    original_captions: Sequence[str] = ()
    translator: str = ""
    url: str = ""
    license: str = ""
    image_hash: int = 0


def hash_words(value: str | bytes) -> tuple[int, int]:
    """64-bit BLAKE2b hash as two signed 32-bit words (high, low): JAX has no int64 by default."""
    data = value.encode() if isinstance(value, str) else value
    high, low = struct.unpack(">ii", hashlib.blake2b(data, digest_size=8).digest())
    return high, low


def serialize_record(record: Record) -> bytes:
    """Record → serialized tf.train.Example. Raises `ValueError` naming the field that is wrong."""
    where = f"record {record.source}/{record.image_id}"
    if not record.image.startswith(b"\xff\xd8\xff"):
        raise ValueError(f"{where}: image must be JPEG bytes, starts with {record.image[:4]!r}")
    if not record.captions or not all(caption.strip() for caption in record.captions):
        raise ValueError(f"{where}: needs at least one caption and no blank ones")
    for caption in record.captions:
        if not unicodedata.is_normalized("NFC", caption):
            raise ValueError(f"{where}: caption {caption!r} is not in Unicode form NFC")
    example = _Example()
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        feature = example.features.feature[field.name]
        if isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            values = [value] if isinstance(value, str | bytes) else value
            data = (v.encode() if isinstance(v, str) else v for v in values)
            feature.bytes_list.value.extend(data)
    return example.SerializeToString(deterministic=True)


def record_image(serialized: bytes) -> bytes:
    """The encoded image of a record alone: four times as fast as `parse_record`."""
    return _Example.FromString(serialized).features.feature["image"].bytes_list.value[0]


def record_captions(serialized: bytes) -> tuple[bytes, list[bytes]]:
    """Key (`source/image_id`) and captions of a record, both UTF-8."""
    feature = _Example.FromString(serialized).features.feature
    source, image_id = (feature[name].bytes_list.value[0] for name in ("source", "image_id"))
    return source + b"/" + image_id, list(feature["captions"].bytes_list.value)


def parse_record(serialized: bytes) -> Record:
    """Inverse of `serialize_record`; captions come back as tuples."""
    feature = _Example.FromString(serialized).features.feature
    texts = {
        name: tuple(value.decode() for value in feature[name].bytes_list.value)
        for name in ("captions", "original_captions")
    }
    words = {
        name: feature[name].bytes_list.value[0].decode()
        for name in ("source", "image_id", "translator", "url", "license")
    }
    return Record(
        image=feature["image"].bytes_list.value[0],
        image_hash=feature["image_hash"].int64_list.value[0],
        **texts,
        **words,
    )


def write_records(
    folder: str | Path,
    splits: Mapping[str, Iterable[Record]],
    *,
    name: str,
    shard_bytes: int = 256 << 20,
    also: Callable[[Path, Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Writes one source into `folder` (`<data_dir>/<source>`), whole or not at all.

    Everything is staged in a hidden sibling folder and renamed at the end; an older version of
    the source is replaced.

    Args:
      folder: where to; its parents are made.
      splits: records of `train` and/or `validation`, in the order in which they are numbered;
        consumed one by one, so generators are welcome. A split may be empty.
      name: name of the source: lower-case letters, digits and underscores.
      shard_bytes: a new shard begins when the current one holds at least this many bytes.
      also: is given the staged folder and the contents of `records.json`, to add further files
        of the source (a tokenizer, a data card, ...), which appear together with the records.

    Returns:
      The contents of `records.json`.

    Raises:
      ValueError: a wrong name, split or record, or no record at all.
      FileExistsError: `folder` holds something else than records.
    """
    folder = Path(folder)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name {name!r}: use lower-case letters, digits and underscores")
    if unknown := set(splits) - set(SPLITS):
        raise ValueError(f"splits {sorted(unknown)} are not allowed; use {SPLITS}")
    if folder.exists() and any(folder.iterdir()) and not (folder / INDEX_FILE).exists():
        raise FileExistsError(f"{folder} exists and holds no records; name another folder")
    staged = folder.with_name(f".{folder.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)  # what a killed writer left
    staged.mkdir(parents=True)
    try:
        index = _write_staged(staged, splits, name, shard_bytes)
        if also:
            also(staged, index)
        _swap(staged, folder)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return index


def _swap(staged: Path, folder: Path) -> None:
    """Puts `staged` in the place of `folder`; a reader sees the old or the new one, never half."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    staged.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_staged(
    folder: Path, splits: Mapping[str, Iterable[Record]], name: str, shard_bytes: int
) -> dict[str, Any]:
    shards = {
        split: write_shards(
            folder, f"{name}-{split}.array_record", map(serialize_record, records), shard_bytes
        )
        for split, records in splits.items()
    }
    if not any(shards.values()):
        raise ValueError(f"source {name}: no records in any split, nothing written")
    _write_tfds_metadata(folder, name, shards)
    checksums = json.dumps({s: [shard["sha256"] for shard in shards[s]] for s in sorted(shards)})
    index = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "fingerprint": hashlib.sha256(checksums.encode()).hexdigest(),
        "records": {s: sum(shard["records"] for shard in shards[s]) for s in shards},
        "shards": shards,
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n")
    return index


def _write_tfds_metadata(folder: Path, name: str, shards: Mapping[str, list[dict]]) -> None:
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(folder), dataset_name=name, filetype_suffix="array_record"
    )
    text = tfds.features.Text()
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features={
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "captions": tfds.features.Sequence(text),
            "original_captions": tfds.features.Sequence(text),
            **dict.fromkeys(("translator", "source", "image_id", "url", "license"), text),
            "image_hash": tfds.features.Scalar(np.int64),
        },
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard["records"] for shard in shards[split]],
                num_bytes=sum(shard["bytes"] for shard in shards[split]),
                filename_template=template,
            )
            for split in shards
            if shards[split]
        ],
        filename_template=template,
        check_data=False,  # would import TensorFlow
    )


def list_sources(data_dir: str | Path) -> list[str]:
    """Names of the sources in `data_dir`, sorted."""
    return sorted(
        path.parent.name
        for path in Path(data_dir).glob(f"*/{INDEX_FILE}")
        if not path.parent.name.startswith(".")
    )


def open_split(data_dir: str | Path, source: str, split: str) -> RecordFile:
    """Opens one split of `<data_dir>/<source>` for random access.

    Raises:
      ConfigError: naming the field `sources`: no such source, newer format, an empty split, or
        a shard that is missing or has the wrong size.
    """
    folder = Path(data_dir) / source
    if not (folder / INDEX_FILE).is_file():
        found = ", ".join(list_sources(data_dir)) or "none"
        raise ConfigError(
            f"sources: no records of {source!r} in {data_dir} (sources found there: {found}); "
            "correct sources or data_dir, or prepare it first"
        )
    index = json.loads((folder / INDEX_FILE).read_text())
    version = index["format_version"]
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"sources: {source!r} has record format {version}, this code reads {FORMAT_VERSION}; "
            "update the code or prepare the source again"
        )
    if not index["records"].get(split):
        raise ConfigError(
            f"sources: {source!r} has no records in its {split} split "
            f"(it has {index['records']}); prepare it with that split or leave it out"
        )
    return RecordFile(folder, index, split)
