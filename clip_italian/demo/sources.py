"""Where the pictures of an index come from: a folder of files, or prepared records."""

import dataclasses
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from clip_italian.collection import Collection
from clip_italian.config import ConfigError
from clip_italian.demo.thumbnails import MAX_BYTES
from clip_italian.evaluation.folders import SUFFIXES, find_images

OpenRecords = Callable[[str, str, str], Collection]  # data_dir, source, split


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures to be indexed, in a fixed order.

    Attributes:
      title: where they come from, for people.
      keys: one for each picture, all different.
      stamps: one for each picture; while it stays, the picture has not changed.
      captions: those of each picture; may be empty.
      read: number of a picture → its file, or at least the first `MAX_BYTES` + 1 bytes; may be
        called from several threads and raise `OSError`.
      passed_over: why other files are no pictures of it → how many they are.
    """

    title: str
    keys: Sequence[str]
    stamps: Sequence[str]
    captions: Sequence[Sequence[str]]
    read: Callable[[int], bytes]
    passed_over: dict[str, int] = dataclasses.field(default_factory=dict)


def open_pictures(spec: str, open_records: OpenRecords) -> Pictures:
    """A folder of pictures, or records as `DATA_DIR/SOURCE` or `DATA_DIR/SOURCE:SPLIT`.

    Args:
      spec: which; without a split, of records the validation split is taken.
      open_records: (data_dir, source, split) → collection.

    Raises:
      ConfigError: there is neither, or no picture in it.
    """
    place, _, split = spec.rpartition(":") if re.search(r":\w+$", spec) else (spec, "", "")
    folder = Path(place)
    if (folder / "records.json").is_file():  # what data preparation writes beside its shards
        records = folder.resolve()
        name = split or "validation"
        return record_pictures(open_records(str(records.parent), records.name, name))
    return folder_pictures(spec)


def folder_pictures(path: str | Path) -> Pictures:
    """The pictures below a folder, by name; a file's stamp is its size and time of change.

    Hidden files are passed over, links to folders are not entered, and a link to a file must not
    lead out of the folder. Captions are empty.

    Raises:
      ConfigError: no such folder, or no picture in it.
    """
    root = Path(path)
    if not root.is_dir():
        raise ConfigError(
            f"images: no folder of pictures at {str(path)!r}, and no records either; give a "
            "folder, or records as DATA_DIR/SOURCE[:SPLIT]"
        )
    root = root.resolve()
    images, others = find_images(root, links=False)
    stamps, unfit = {}, 0
    for key, file in images.items():
        try:
            if file.is_symlink() and not file.resolve().is_relative_to(root):
                raise FileNotFoundError(f"{key} leads out of the folder")
            found = file.stat()
            if not stat.S_ISREG(found.st_mode):  # what is no file might never end
                raise FileNotFoundError(f"{key} is no regular file")
            stamps[key] = f"{found.st_size} bytes, {found.st_mtime_ns} ns"
        except (OSError, RuntimeError):  # a link that leads nowhere, or in a circle
            unfit += 1
    if not stamps:
        raise ConfigError(f"images: {path} holds no pictures ({', '.join(SUFFIXES)})")
    passed_over = {
        f"not {', '.join(SUFFIXES)}": len(others),
        "links out of the folder, or no files": unfit,
    }
    files = [str(images[key]) for key in stamps]
    return Pictures(
        title=f"folder {path}",
        keys=list(stamps),
        stamps=list(stamps.values()),
        captions=[()] * len(stamps),
        read=lambda number: _read_file(files[number]),
        passed_over={why: count for why, count in passed_over.items() if count},
    )


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(MAX_BYTES + 1)


def record_pictures(collection: Collection) -> Pictures:
    """The pictures of a collection with their captions; the data's fingerprint is their stamp."""
    captions: list[list[str]] = [[] for _ in collection.image_keys]
    for text, image in zip(collection.captions, collection.caption_image.tolist(), strict=True):
        captions[image].append(text)
    return Pictures(
        title=f"{collection.name} ({collection.protocol})",
        keys=list(collection.image_keys),
        stamps=[collection.fingerprint] * len(collection),
        captions=captions,
        read=lambda number: collection.read(np.array([number]))[0],
    )
