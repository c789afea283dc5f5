"""Shards on disk: folders that are written whole or not at all, and the tables inside them."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from clip_italian.config import ConfigError

TEXTS = pa.list_(pa.string())
# A row's key is (input << 40) + its number in that input: unique, and the order of the records.
ROWS = pa.schema({
    "key": pa.int64(), "file": pa.string(), "line": pa.int64(), "captions": TEXTS,
    "original_captions": TEXTS, "image": pa.string(), "image_id": pa.string(),
    "split": pa.string(), "source": pa.string(), "url": pa.string(), "license": pa.string(),
    "translator": pa.string(), "entries": pa.int32(), "has_bytes": pa.bool_(),
})  # fmt: skip
BYTES = pa.schema({"key": pa.int64(), "image_bytes": pa.large_binary()})
IMAGES = pa.schema({
    "key": pa.int64(), "jpeg": pa.large_binary(), "image_hash": pa.int64(),
    "thumbnail": pa.binary(), "digest": pa.string(),
})  # fmt: skip
DETAIL_CHARACTERS = 500


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A new folder to fill; it appears as `folder` when all went well, or not at all.

    Two that write the same folder (a task that Ray started again while the lost one still ran)
    do not disturb each other: the first to finish wins, as both write the same.
    """
    staged = folder.with_name(f".{folder.name}.{os.getpid()}-{os.urandom(4).hex()}")
    staged.mkdir(parents=True)
    try:
        yield staged
        try:
            staged.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def remove_leftovers(stage: Path) -> None:
    """Removes what a killed run was still writing; a worker of it that lives on will fail."""
    for path in stage.glob(".*"):
        if path.is_dir() and not path.name.startswith(".old-"):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def locked(work: Path) -> Iterator[None]:
    """Holds a work folder for this process, as long as it lives.

    Raises:
      ConfigError: naming `work_dir`: another run holds it.
    """
    with (work / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"work_dir = {str(work)!r} is in use by another run; wait for it, or name another"
            ) from error
        yield


def shard_folders(stage: Path) -> list[Path]:
    """The finished shards of a stage, in order."""
    return sorted(path for path in stage.glob("[0-9]*") if path.is_dir())


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Rows (dicts) → one parquet file."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)


def read_table(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """One parquet file → rows (dicts)."""
    return pq.read_table(path, columns=columns).to_pylist()


def row_count(path: Path) -> int:
    """Rows of a parquet file, from its last bytes."""
    return pq.read_metadata(path).num_rows


def write_json(path: Path, value: Any) -> None:
    """A small JSON file, whole or not at all."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    staged.replace(path)


def read_json(path: Path) -> Any:
    """Inverse of `write_json`."""
    return json.loads(path.read_text(encoding="utf-8"))


class RejectLog:
    """JSON lines of what was set aside in one shard of one step, and their counts.

    Attributes:
      rows: reason → rows set aside.
      captions: reason → captions set aside.
    """

    def __init__(self, file: TextIO, stage: str) -> None:
        """Args: file: open for writing; stage: name of the step, kept in every line."""
        self._file = file
        self._stage = stage
        self.rows: Counter[str] = Counter()
        self.captions: Counter[str] = Counter()

    def entry(self, file: str, line: int, reason: str, detail: str, entries: int) -> None:
        """Sets aside an entry of an input that gave no row."""
        self.rows[reason] += entries
        self._write({"file": file, "line": line}, reason, detail, ())

    def row(self, row: Mapping[str, Any], reason: str, detail: str = "") -> None:
        """Sets aside a row with all captions that it still has."""
        self.rows[reason] += 1
        if row["captions"]:
            self.captions[reason] += len(row["captions"])
        self._write(row, reason, detail, row["captions"])

    def caption(self, row: Mapping[str, Any], caption: str, reason: str) -> None:
        """Sets aside one caption of a row."""
        self.captions[reason] += 1
        self._write(row, reason, "", (caption,))

    def _write(
        self, row: Mapping[str, Any], reason: str, detail: str, captions: Sequence[str]
    ) -> None:
        line = {
            "file": row["file"],
            "line": row["line"],
            "stage": self._stage,
            "reason": reason,
            "detail": detail[:DETAIL_CHARACTERS],
            "image": str(row.get("image") or "")[:DETAIL_CHARACTERS],
            "captions": [caption[:DETAIL_CHARACTERS] for caption in captions],
        }
        # Escaped: half a surrogate pair in the input must not break the file.
        self._file.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def reject_log(folder: Path, stage: str) -> Iterator[RejectLog]:
    """Opens `<folder>/rejects.jsonl`."""
    with (folder / "rejects.jsonl").open("w", encoding="utf-8") as file:
        yield RejectLog(file, stage)


def fingerprint(*parts: Any) -> str:
    """12 hex digits that name a step's folder: equal parts, equal folder."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def batched(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size`, the last one shorter."""
    batch: list[Any] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def total(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums dicts of numbers and of dicts of numbers, key by key."""
    summed: dict[str, Any] = {}
    for count in counts:
        for key, value in count.items():
            if isinstance(value, Mapping):
                summed[key] = total([summed.get(key, {}), value])
            else:
                summed[key] = summed.get(key, 0) + value
    return summed
