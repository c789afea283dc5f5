"""Reading an input and filtering captions: work on one shard, a function of files alone."""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from data_prep.filters import TextFilters, make_checker
from data_prep.rows import Reject, Row, Skip, Source
from data_prep.store import (
    BYTES,
    ROWS,
    read_table,
    reject_log,
    whole,
    write_json,
    write_table,
)
from data_prep.text import normalize

CARRIED_BYTES = 64 << 20  # of pictures in one shard
_checker = functools.cache(make_checker)  # one language model per process


def read_input(path: str, folder: Path, number: int, source: Source, rows_per_shard: int) -> None:
    """One input → `rows-*.parquet`, their `bytes-*.parquet`, rejects and counts.

    Args:
      path: the input, as `source.inputs()` names it.
      folder: where the finished shard goes.
      number: position of the input among all inputs.
      source: whose input it is.
      rows_per_shard: rows of one file.
    """
    skipped: Counter[str] = Counter()
    rows = entries = 0
    with whole(folder) as staged, reject_log(staged, "read") as log:

        def kept() -> Iterator[Row]:
            for item in source.read(path):
                if isinstance(item, Row):
                    yield item
                elif isinstance(item, Reject):
                    log.entry(path, item.line, item.reason, item.detail, item.entries)
                elif isinstance(item, Skip):
                    skipped[item.reason] += item.entries

        for shard, batch in enumerate(_shards(kept(), rows_per_shard)):
            keys = range((number << 40) + rows, (number << 40) + rows + len(batch))
            tables = [_table_row(row, key, path) for key, row in zip(keys, batch, strict=True)]
            write_table(staged / f"rows-{shard:05}.parquet", tables, ROWS)
            contents = [
                {"key": key, "image_bytes": row.image_bytes}
                for key, row in zip(keys, batch, strict=True)
                if row.image_bytes
            ]
            if contents:
                write_table(staged / f"bytes-{rows:012}.parquet", contents, BYTES)
            rows += len(batch)
            entries += sum(row.entries for row in batch)
        write_json(staged / "counts.json", {
            **_file_facts(path), "skipped": skipped, "rejected": log.rows,
            "rows": rows, "entries_of_rows": entries,
            "read": entries + sum(log.rows.values()) + sum(skipped.values()),
        })  # fmt: skip


def _shards(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Lists of at most `size` rows, fewer where they carry large pictures."""
    batch: list[Row] = []
    carried = 0
    for row in rows:
        batch.append(row)
        carried += len(row.image_bytes)
        if len(batch) == size or carried >= CARRIED_BYTES:
            yield batch
            batch, carried = [], 0
    if batch:
        yield batch


def _file_facts(path: str) -> dict[str, Any]:
    """Size and checksum for the card; none for an input that is no file (a hub data set)."""
    if not Path(path).is_file():
        return {"file": path, "bytes": None, "sha256": None}
    with open(path, "rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path, "bytes": Path(path).stat().st_size, "sha256": checksum}


def _table_row(row: Row, key: int, path: str) -> dict[str, Any]:
    fields = {name: getattr(row, name, None) for name in ROWS.names}
    return fields | {
        "key": key,
        "file": os.fsencode(path).decode("utf-8", "backslashreplace"),
        "image_id": row.image_id or row.image or f"{key >> 40}/{Path(path).name}:{row.line}",
        "has_bytes": bool(row.image_bytes),
    }


def clean_captions(
    rows_file: Path, folder: Path, filters: TextFilters, final_stop: Literal["keep", "drop"]
) -> None:
    """Normalises and filters the captions of one shard → `rows.parquet`, rejects and counts."""
    rows = read_table(rows_file)
    texts = [[normalize(text, final_stop) for text in row["captions"]] for row in rows]
    originals = [_originals(row) for row in rows]
    _write_filtered(folder, "captions", rows, texts, originals, filters)


def translate_captions(
    rows_file: Path,
    folder: Path,
    translate: Callable[[list[str]], list[str]],
    translator: str,
    filters: TextFilters,
    final_stop: Literal["keep", "drop"],
) -> None:
    """Translates the captions of one shard and filters what came of them; originals are kept.

    Args:
      rows_file: the shard's rows.
      folder: where the finished shard goes.
      translate: texts → as many texts, from a cache where it can.
      translator: who translates, for the records.
      filters: of the translated captions.
      final_stop: as in `Options`.
    """
    rows = read_table(rows_file)
    originals = [row["captions"] for row in rows]
    flat = iter(translate([text for row in originals for text in row]))
    texts = [[normalize(next(flat), final_stop) for _ in row] for row in originals]
    for row in rows:
        row["translator"] = translator
    _write_filtered(folder, "translation", rows, texts, originals, filters)


def _write_filtered(
    folder: Path,
    stage: str,
    rows: list[dict[str, Any]],
    texts: Sequence[Sequence[str]],
    originals: Sequence[Sequence[str | None]],
    filters: TextFilters,
) -> None:
    reasons = iter(_checker(filters)([text for row in texts for text in row]))
    kept = []
    with whole(folder) as staged, reject_log(staged, stage) as log:
        for row, captions, sources in zip(rows, texts, originals, strict=True):
            row["captions"], row["original_captions"] = [], []
            for caption, original in zip(captions, sources, strict=True):
                reason = next(reasons)
                if reason or not caption:
                    log.caption(row, caption or original or "", reason if caption else "no text")
                elif caption in row["captions"]:
                    log.caption(row, caption, "said twice of one picture")
                else:
                    row["captions"].append(caption)
                    row["original_captions"].append(original)
            if row["original_captions"].count(None) == len(row["original_captions"]):
                row["original_captions"] = []
            if row["captions"]:
                kept.append(row)
            else:
                log.row(row, "no caption left")
        write_table(staged / "rows.parquet", kept, ROWS)
        write_json(staged / "counts.json", {
            "rows_in": len(rows), "captions_in": sum(map(len, texts)), "rows_out": len(kept),
            "captions_out": sum(len(row["captions"]) for row in kept),
            "rejected_rows": log.rows, "rejected_captions": log.captions,
        })  # fmt: skip


def _originals(row: dict[str, Any]) -> list[str | None]:
    """What each caption was translated from; None where the row does not say."""
    originals = row["original_captions"]
    return originals if len(originals) == len(row["captions"]) else [None] * len(row["captions"])
