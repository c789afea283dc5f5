"""Pooled outputs of frozen towers on disk, and their place in the steps of a run.

A folder holds `features.npy` (one row per picture, or per caption; float32, or the bits of
bfloat16 as uint16), `broken.txt` (pictures that cannot be decoded, one number a line) and, last,
`features.json`, which says that it is whole. It is written in blocks; what is killed goes on after
the last whole one.
"""

import dataclasses
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from clip_italian.config import ConfigError
from clip_italian.data.order import Order
from clip_italian.data.selection import Chosen

FORMAT_VERSION = 1
BLOCK = 4096  # rows written at once
_DATA, _BROKEN, _META = "features.npy", "broken.txt", "features.json"
# How each compute type of a tower lies in a file.
_STORED = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(np.uint16)}


@dataclasses.dataclass(frozen=True)
class Cached:
    """Stored features of each source, and the steps in which they stand for a tower.

    Attributes:
      images: [source][view] → [records, width]; empty: none.
      images_until: step at which the vision tower starts to move; None: never.
      text: [source] → [captions, width]; empty: none.
      text_until: likewise, of the text tower.
      order: says which view a position shows; needed with images.
    """

    images: Sequence[Sequence[np.ndarray]] = ()
    images_until: int | None = 0
    text: Sequence[np.ndarray] = ()
    text_until: int | None = 0
    order: Order | None = None

    def has_images(self, step: int) -> bool:
        """Whether a batch of this step has `image_features`."""
        return bool(self.images) and (self.images_until is None or step < self.images_until)

    def has_text(self, step: int) -> bool:
        """Whether a batch of this step has `text_features`."""
        return bool(self.text) and (self.text_until is None or step < self.text_until)

    def next_change(self, step: int) -> int | None:
        """First step after this one in which pictures come another way; None: there is none."""
        return self.images_until if self.has_images(step) else None

    def images_of(self, chosen: Chosen) -> np.ndarray:
        """Features of the chosen pictures [rows, width], of one of their views each."""
        assert self.order is not None
        views = len(self.images[0])
        view = self.order.views(chosen.position, views)
        files = [file for source in self.images for file in source]
        return _gather(files, chosen.source * views + view, chosen.record)

    def text_of(self, chosen: Chosen) -> np.ndarray:
        """Features of the chosen captions [rows, width]."""
        return _gather(self.text, chosen.source, chosen.caption)


def _gather(files: Sequence[np.ndarray], which: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if len(files) == 1:
        return files[0][rows]
    result = np.empty((len(rows), files[0].shape[1]), files[0].dtype)
    for number in np.unique(which):
        at = which == number
        result[at] = files[number][rows[at]]
    return result


def open_features(folder: Path) -> tuple[np.ndarray, list[int]] | None:
    """Features [rows, width] (memory-mapped) and broken rows of a whole folder, else None."""
    try:
        meta = json.loads((folder / _META).read_text())
        size = (folder / _DATA).stat().st_size
        broken = [int(line) for line in (folder / _BROKEN).read_text().split()]
        if size != meta["bytes"]:
            logging.warning("%s has %d bytes, not %d", folder / _DATA, size, meta["bytes"])
            return None
        stored = np.asarray(np.load(folder / _DATA, mmap_mode="r"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        logging.warning("%s cannot be read and is made anew: %s", folder, error)
        return None
    return (stored.view(ml_dtypes.bfloat16) if stored.dtype == np.uint16 else stored), broken


def write_features(
    folder: Path,
    facts: dict[str, Any],
    rows: int,
    dtype: str,
    encode: Callable[[int], Iterator[np.ndarray]],
) -> None:
    """Writes `rows` features block by block, from the first block that is missing.

    Args:
      folder: made already; nothing else than these features is ever in it.
      facts: what the features are of, for `features.json`.
      rows: how many.
      dtype: "float32" or "bfloat16".
      encode: first row → features from there to the end, float [n, width] of any n at a time.

    Raises:
      ConfigError: naming `cached_views`: another process is writing them, or the disk is full.
    """
    # Opened without being cut: another process may be writing it.
    with os.fdopen(os.open(folder / _DATA, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process
        except OSError as error:
            raise ConfigError(
                f"cached_views: another run is writing {folder}; wait until it has"
            ) from error
        (folder / _META).unlink(missing_ok=True)
        (folder / _BROKEN).touch()
        done = _whole_rows(file, rows, _STORED[dtype])
        for block in _blocks(encode(done), rows - done):
            stored = block.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
            _append(file, stored.view(_STORED[dtype]), rows)
        meta = {"format_version": FORMAT_VERSION, **facts, "rows": rows, "bytes": file.tell()}
        temporary = folder / f"{_META}.{os.getpid()}"
        with temporary.open("w") as described:
            described.write(json.dumps(meta, indent=1) + "\n")
            described.flush()
            os.fsync(described.fileno())
        temporary.rename(folder / _META)


def note_broken(folder: Path, row: int) -> None:
    """Notes a picture that cannot be decoded, before its block is written."""
    with (folder / _BROKEN).open("a") as file:
        file.write(f"{row}\n")


def _whole_rows(file: BinaryIO, rows: int, dtype: np.dtype) -> int:
    """Rows of whole blocks in a file; what follows them is cut off, and `file` is at their end."""
    done = 0
    try:
        version = np.lib.format.read_magic(file)
        shape, _, found = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
        if version == (1, 0) and found == dtype and len(shape) == 2 and shape[0] == rows:
            width = shape[1] * dtype.itemsize
            there = (os.fstat(file.fileno()).st_size - start) // width
            if there <= rows:
                done = rows if there == rows else there // BLOCK * BLOCK
            file.truncate(start + done * width)
    except ValueError:  # no header yet, or half of one
        pass
    if not done:
        file.truncate(0)
    file.seek(0, os.SEEK_END)
    return done


def _blocks(parts: Iterator[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Parts of any size → blocks of `BLOCK` rows, and a last one of what is left."""
    waiting: list[np.ndarray] = []
    count = written = 0
    for part in parts if rows else ():
        waiting.append(part)
        count += len(part)
        while count >= BLOCK or (count and written + count == rows):
            joined = np.concatenate(waiting)
            yield joined[:BLOCK]
            written += len(joined[:BLOCK])
            waiting, count = [joined[BLOCK:]], len(joined[BLOCK:])
    if written != rows:
        raise ValueError(f"{written} of {rows} rows were encoded")


def _append(file: BinaryIO, block: np.ndarray, rows: int) -> None:
    if not file.tell():
        needed, free = rows * block[0].nbytes, shutil.disk_usage(file.name).free
        if needed > free:
            raise ConfigError(
                f"cached_views: {file.name} needs {needed:,} bytes, {free:,} are free; free some, "
                "or give 0"
            )
        header = {"descr": np.lib.format.dtype_to_descr(block.dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (rows, block.shape[1])})
    file.write(np.ascontiguousarray(block).data)
    file.flush()
    os.fsync(file.fileno())
