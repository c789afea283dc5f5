"""Imports JSON lines `{"image": ..., "captions": [...]}` (or `image_path`, as in 2021) to records.

Optional keys of a row: `split`, `source`, `image_id`, `url`, `license`, `original_captions`,
`translator`. Rows that cannot be used are set aside with file, line and reason; none stops the
import.
"""

import dataclasses
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clip_italian.data.records import SPLITS, Record, write_records
from data_prep.images import MAX_BYTES, prepare_image

_SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "validation",
}


@dataclasses.dataclass(frozen=True)
class ImportSummary:
    """What became of the rows: `lines` = `blank` + Σ `records` + Σ `rejects`.

    Attributes:
      lines: lines of the file.
      blank: empty lines among them.
      records: split → records written.
      rejects: reason → rows set aside.
      rejects_file: JSON lines with file, line and reason of each row set aside, if any was.
    """

    lines: int
    blank: int
    records: dict[str, int]
    rejects: dict[str, int]
    rejects_file: Path

    def __str__(self) -> str:
        """A table with one line per count."""
        rows = [(count, f"records in {split}") for split, count in self.records.items()]
        rows += [(count, f"set aside: {reason}") for reason, count in sorted(self.rejects.items())]
        rows += [(self.blank, "blank lines")] if self.blank else []
        table = [f"{self.lines:>9,} lines, of which", *(f"{n:>9,} {what}" for n, what in rows)]
        if self.rejects:
            table.append(f"rows set aside are listed in {self.rejects_file}")
        return "\n".join(table)


class _RejectedError(Exception):
    """A row cannot be used; the message is the reason."""


def import_jsonl(
    path: str | Path, out_dir: str | Path, source: str, *, root: str | Path, size: int = 256
) -> ImportSummary:
    """JSON lines → records in `<out_dir>/<source>`; bad rows → `<out_dir>/<source>.rejects.jsonl`.

    A row goes to the split it names (dev and test count as validation). Without one, 5% go to
    validation by a hash of the image's bytes, so that a picture never lands in both.

    Args:
      path: UTF-8 file, one JSON object a line.
      out_dir: data folder; the source's own folder is made in it, or replaced.
      source: name of the source: lower-case letters, digits and underscores.
      root: folder that image paths are relative to and must stay within.
      size: longest shorter side of a stored image, pixels.

    Raises:
      ValueError: a wrong name, or no row at all could be used (the rejects file says why).
      FileNotFoundError: no such file or root.
    """
    importer = _Importer(Path(path), source, Path(root).resolve(strict=True), size)
    rejects_file = Path(out_dir) / f"{source}.rejects.jsonl"
    rejects_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        splits = {split: importer.records(split) for split in SPLITS}
        index = write_records(Path(out_dir) / source, splits, name=source)
    finally:
        rejects_file.unlink(missing_ok=True)
        if importer.rejects:
            lines = [json.dumps(importer.rejects[n]) + "\n" for n in sorted(importer.rejects)]
            rejects_file.write_text("".join(lines))
    reasons = Counter(reject["reason"] for reject in importer.rejects.values())
    return ImportSummary(
        importer.lines, importer.blank, index["records"], dict(reasons), rejects_file
    )


class _Importer:
    """Reads the file once per split, since a split is written whole before the next.

    Attributes:
      lines: lines of the file, known after a pass.
      blank: empty lines among them.
      rejects: line number (from 1) → file, line and reason.
    """

    def __init__(self, path: Path, source: str, root: Path, size: int) -> None:
        self._path = path
        self._source = source
        self._root = root
        self._size = size
        self._lines_of: dict[tuple[str, str], int] = {}  # (source, image_id) → line it came from
        self.lines = self.blank = 0
        self.rejects: dict[int, dict[str, Any]] = {}

    def records(self, split: str) -> Iterator[Record]:
        self.lines = self.blank = 0
        progress = tqdm(
            total=self._path.stat().st_size, desc=f"{self._path.name} → {split}", unit="B",
            unit_scale=True,
        )  # fmt: skip
        with self._path.open("rb") as file, progress:
            for line in file:
                self.lines += 1
                progress.update(len(line))
                if not line.strip():
                    self.blank += 1
                elif self.lines not in self.rejects:
                    try:
                        record = self._record(line, split)
                    except _RejectedError as error:
                        self.rejects[self.lines] = {
                            "file": str(self._path), "line": self.lines, "reason": str(error),
                        }  # fmt: skip
                        continue
                    if record is not None:
                        yield record

    def _record(self, line: bytes, split: str) -> Record | None:
        """One line → a record, or None if it belongs to the other split."""
        row = parse_row(line)
        captions = clean_captions(row.get("captions"))
        if not captions:
            raise _RejectedError("no caption")
        named = _SPLIT_NAMES.get(str(row.get("split", "")).lower())
        if named not in (None, split):
            return None
        path = row.get("image") or row.get("image_path")
        data = self._read_image(path)
        if named is None and split_by_hash(data) != split:
            return None
        source, image_id = str(row.get("source") or self._source), row.get("image_id")
        key = source, str(path if image_id is None else image_id)
        if self._lines_of.setdefault(key, self.lines) != self.lines:
            raise _RejectedError("image_id seen before")
        image = prepare_image(data, self._size)
        if isinstance(image, str):
            raise _RejectedError(image)
        return Record(
            image=image.jpeg,
            captions=captions,
            source=key[0],
            image_id=key[1],
            original_captions=clean_captions(row.get("original_captions", [])),
            translator=str(row.get("translator") or ""),
            url=str(row.get("url") or ""),
            license=str(row.get("license") or ""),
            image_hash=image.image_hash,
        )

    def _read_image(self, path: Any) -> bytes:
        if not isinstance(path, str) or not path:
            raise _RejectedError("no image path")
        try:
            file = (self._root / path).resolve()  # follows links, so that none leads out
            if not file.is_relative_to(self._root):
                raise _RejectedError("image path outside root")
            if not file.is_file():
                raise _RejectedError("image missing")
            if file.stat().st_size > MAX_BYTES:
                raise _RejectedError("too many bytes")
            return file.read_bytes()
        except (OSError, ValueError) as error:  # a NUL in the path, a name too long, no permission
            raise _RejectedError("image cannot be read") from error


def parse_row(line: bytes) -> dict[str, Any]:
    """One line of the file → its object; a byte order mark is dropped."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except UnicodeError as error:
        raise _RejectedError("bad Unicode") from error
    except (ValueError, RecursionError) as error:
        raise _RejectedError("bad JSON") from error
    if not isinstance(row, dict):
        raise _RejectedError("not a JSON object")
    return row


def clean_captions(captions: Any) -> list[str]:
    """Unicode NFC, runs of white space collapsed, blank ones dropped; case is kept."""
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise _RejectedError("captions are not a list of texts")
    cleaned = (" ".join(unicodedata.normalize("NFC", text).split()) for text in captions)
    return [text for text in cleaned if text]


def split_by_hash(data: bytes) -> str:
    """`validation` for 5% of all images, `train` for the rest, by their bytes alone."""
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return "validation" if int.from_bytes(digest, "big") % 20 == 0 else "train"
