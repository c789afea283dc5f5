"""Prepared records and TensorFlow datasets → collections, for evaluation."""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from clip_italian.collection import Collection
from clip_italian.config import ConfigError, DataConfig
from clip_italian.data.records import open_split, parse_record, record_image
from clip_italian.data.shards import RecordFile
from clip_italian.data.sources import local_data_dir

_READ = 256  # images read at once while collecting captions and labels


def open_records(
    data_dir: str,
    source: str,
    split: str = "validation",
    limit: int = 0,
    *,
    data_cache: str = DataConfig.data_cache,
) -> Collection:
    """Images and captions of prepared records, in record order.

    Args:
      data_dir: folder with one folder of records per source; a remote one is copied first.
      source: name of the source.
      split: "train" or "validation".
      limit: how many images, the first ones; 0 takes all.
      data_cache: where copies of remote records are kept.

    Raises:
      ConfigError: naming `sources`: no such source, or an empty split.
    """
    folder = local_data_dir(DataConfig(data_dir=data_dir, data_cache=data_cache), source)
    return collect(open_split(folder, source, split), limit)


def collect(file: RecordFile, limit: int = 0) -> Collection:
    """Records → collection named after their source; `limit` as in `open_records`."""
    count = min(len(file), limit or len(file))
    captions: list[str] = []
    image_keys: list[str] = []
    caption_image: list[int] = []
    for start in range(0, count, _READ):
        for data in file.read(np.arange(start, min(start + _READ, count))):
            record = parse_record(data)
            caption_image += [len(image_keys)] * len(record.captions)
            captions += record.captions
            image_keys.append(f"{record.source}/{record.image_id}")
    return Collection(
        name=file.source,
        protocol=f"records_{file.split}",
        image_keys=image_keys,
        read=lambda numbers: [record_image(data) for data in file.read(numbers)],
        fingerprint=_sha256([file.fingerprint, file.split, count]),
        captions=captions,
        caption_image=np.array(caption_image, np.int32),
    )


def open_tfds(name: str, split: str, data_dir: str = "") -> Collection:
    """An image classification set of TFDS (features `image` and `label`), already prepared.

    Args:
      name: as `tfds.builder` takes it, e.g. "cifar10" or "imagenet_v2/matched-frequency".
      split: e.g. "test" or "test[:1000]".
      data_dir: where TFDS keeps its data; empty takes TFDS's own place.

    Raises:
      ConfigError: no such set, not prepared for random access, no such split, or no `image` and
        `label` (some sets publish a test split without labels).
    """
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(name, data_dir=data_dir or None)
        decoders = {"image": tfds.decode.SkipDecoding()}
        source = builder.as_data_source(split, decoders=decoders)
        features = dict(builder.info.features.items())
    except Exception as error:  # of as many types as there are causes
        raise ConfigError(
            f"tfds {name!r}, split {split!r}: {str(error).splitlines()[0]} Prepare it with "
            f"`tfds build {name} --file_format array_record`"
        ) from error
    if "image" not in features or not isinstance(features.get("label"), tfds.features.ClassLabel):
        raise ConfigError(f"tfds {name!r} has {sorted(features)}, no image with a class label")

    def rows(numbers: Iterable[int]) -> list[dict[str, Any]]:
        return source.__getitems__([int(number) for number in numbers])

    sums, labels = [], []
    for start in range(0, len(source), _READ):
        for row in rows(range(start, min(start + _READ, len(source)))):
            sums.append(hashlib.sha256(row["image"]).hexdigest())
            labels.append(int(row["label"]))
    class_ids = features["label"].names
    if not labels or min(labels) < 0:
        raise ConfigError(f"tfds {name!r}, split {split!r} has no labels; name another split")
    return Collection(
        name=re.sub(r"\W+", "_", f"{name}_{split}").strip("_"),
        protocol="tfds",
        image_keys=[str(number) for number in range(len(source))],
        read=lambda numbers: [row["image"] for row in rows(numbers)],
        fingerprint=_sha256([sums, labels, class_ids]),
        labels=np.array(labels, np.int32),
        class_ids=class_ids,
        checksums=sums,
    )


def _sha256(contents: Any) -> str:
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()
