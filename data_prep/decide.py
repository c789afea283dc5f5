"""Decisions that need the whole set, taken by DuckDB over the tables of all shards."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.duplicates import find_duplicates
from data_prep.guard import HASHES, plain_id
from data_prep.pictures import split_by_digest
from data_prep.store import (
    IMAGES,
    ROWS,
    RejectLog,
    batched,
    reject_log,
    whole,
    write_json,
    write_table,
)

_FATES = pa.schema({
    "key": pa.int64(), "first": pa.int64(), "reason": pa.string(), "split": pa.string(),
})  # fmt: skip


def select_rows(
    row_files: Sequence[Path],
    folder: Path,
    *,
    guard_ids: Mapping[str, set[str]],
    max_repeats: int,
    rows_per_shard: int,
) -> None:
    """Before pictures are fetched: one row per picture, no known evaluation id, no stock caption.

    Rows that name the same picture become one with all their captions.

    Args:
      row_files: the filtered shards.
      folder: where `rows-*.parquet`, rejects and counts go.
      guard_ids: evaluation set → plain ids of its pictures.
      max_repeats: a caption of more pictures than this is dropped; 0 drops none.
      rows_per_shard: rows of one output file.
    """
    with _open(row_files, folder) as connection:
        connection.execute("""
            CREATE TABLE places AS SELECT key, image_id, source,
              CASE WHEN has_bytes THEN key
              ELSE min(key) OVER (PARTITION BY source, image, has_bytes) END AS first FROM rows
        """)
        places = connection.execute("""
            SELECT key, first, image_id,
              first <> min(first) OVER (PARTITION BY source, image_id) AS again
            FROM places ORDER BY key
        """).fetchall()
        reasons: dict[int, str] = {}  # of a picture, by any of its rows
        for key, first, image_id, again in places:
            found = [name for name, ids in guard_ids.items() if plain_id(image_id) in ids]
            if found:
                reasons[first] = f"in evaluation set {found[0]}"
            elif again and key == first:
                reasons.setdefault(first, "image_id seen before")
        fates = (
            {"key": key, "first": first, "reason": reasons.get(first, ""), "split": ""}
            for key, first, *_ in places
        )
        _regroup(connection, _table(fates), folder, "selection", max_repeats, rows_per_shard)


def decide_rows(
    row_files: Sequence[Path],
    image_files: Sequence[Path],
    guard_files: Sequence[Path],
    folder: Path,
    *,
    near_duplicates: int,
    validation_share: float,
    rows_per_shard: int,
) -> None:
    """After pictures are had: duplicates, evaluation pictures and the split.

    Rows whose picture files are equal become one with all their captions; of near-equal
    pictures the first stays.

    Args:
      row_files: the rows, as selected.
      image_files: their pictures' tables; rows without one are left out (counted before).
      guard_files: hashes of evaluation pictures.
      folder: where `rows-*.parquet`, rejects and counts go.
      near_duplicates: as in `DecideOptions`.
      validation_share: as in `DecideOptions`.
      rows_per_shard: rows of one output file.
    """
    guarded = pa.concat_tables([HASHES.empty_table(), *map(pq.read_table, guard_files)])
    with _open(row_files, folder) as connection:
        _view(connection, "images", image_files, IMAGES)
        pictures = connection.sql("""
            SELECT key, image_hash, thumbnail, digest, min(key) OVER (PARTITION BY digest) AS first
            FROM images ORDER BY key
        """).to_arrow_table()
        keys, firsts = pictures["key"].to_numpy(), pictures["first"].to_numpy()
        leading = np.flatnonzero(keys == firsts)
        reasons = find_duplicates(
            pictures["image_hash"].to_numpy()[leading],
            lambda position: pictures["thumbnail"][int(leading[position])].as_py(),
            near_duplicates,
            guarded,
        )
        reason_of = dict(zip(keys[leading].tolist(), reasons, strict=True))
        fates = (
            {"key": key, "first": first, "reason": reason_of[first],
             "split": split_by_digest(digest, validation_share)}
            for key, first, digest in zip(
                keys.tolist(), firsts.tolist(), _values(pictures["digest"]), strict=True
            )
        )  # fmt: skip
        _regroup(connection, _table(fates), folder, "duplicates and leakage", 0, rows_per_shard)


def _open(row_files: Sequence[Path], folder: Path) -> duckdb.DuckDBPyConnection:
    folder.parent.mkdir(parents=True, exist_ok=True)
    spill = folder.parent / ".duckdb"  # what does not fit into memory goes there
    connection = duckdb.connect(config={"temp_directory": str(spill)})
    _view(connection, "rows", row_files, ROWS)
    return connection


def _view(
    connection: duckdb.DuckDBPyConnection, name: str, files: Sequence[Path], schema: pa.Schema
) -> None:
    if files:
        connection.read_parquet([str(file) for file in files]).create_view(name)
    else:
        connection.register(name, schema.empty_table())


def _values(column: pa.ChunkedArray) -> Iterator[Any]:
    return (value.as_py() for chunk in column.chunks for value in chunk)


def _table(fates: Iterable[dict[str, Any]]) -> pa.Table:
    batches = [pa.RecordBatch.from_pylist(part, _FATES) for part in batched(fates, 10_000)]
    return pa.Table.from_batches(batches, _FATES)


def _fetch(cursor: Any) -> Iterator[Any]:
    while rows := cursor.fetchmany(10_000):
        yield from rows


# One line per caption: the picture it belongs to now (`first`), and why it goes, if it does.
_SAID = """
CREATE TABLE said AS
WITH texts AS (
  SELECT rows.key, file, line, image, first, reason AS fate, pos, captions[pos] AS caption,
    CASE WHEN len(original_captions) = len(captions) THEN original_captions[pos] END AS original
  FROM (SELECT *, unnest(range(1, len(captions) + 1)) AS pos FROM rows) AS rows
    JOIN fates USING (key)),
often AS (
  SELECT lower(caption) AS caption FROM texts GROUP BY 1
  HAVING $repeats > 0 AND count(DISTINCT first) > $repeats)
SELECT *,
  CASE WHEN fate <> '' THEN fate
    WHEN row_number() OVER (PARTITION BY first, caption ORDER BY key, pos) > 1
      THEN 'said twice of one picture'
    WHEN lower(caption) IN (SELECT caption FROM often) THEN 'repeated caption'
    ELSE '' END AS reason
FROM texts
"""
# Rows that go: with a reason of their own, or since all their captions went.
_GONE = """
SELECT file, line, image, captions, key = first AS leads,
  CASE WHEN reason <> '' THEN reason ELSE 'no caption left' END, reason <> '' AS fated
FROM rows JOIN fates USING (key)
WHERE reason <> '' OR (key = first AND key NOT IN (SELECT first FROM said WHERE reason = ''))
ORDER BY first, key
"""
_KEPT = """
SELECT rows.* REPLACE (
  texts.captions AS captions, texts.original_captions AS original_captions,
  CASE WHEN rows.split <> '' THEN rows.split ELSE fates.split END AS split)
FROM rows JOIN fates USING (key) JOIN (
  SELECT first AS key, list(caption ORDER BY said.key, pos) AS captions,
    CASE WHEN count(original) = 0 THEN [] ELSE list(original ORDER BY said.key, pos) END
      AS original_captions
  FROM said WHERE reason = '' GROUP BY first) AS texts USING (key)
ORDER BY key
"""


def _regroup(
    connection: duckdb.DuckDBPyConnection,
    fates: pa.Table,
    folder: Path,
    stage: str,
    max_repeats: int,
    rows_per_shard: int,
) -> None:
    """Rows and their fates (`key`, the row it joins, why it goes) → shards, rejects, counts."""
    connection.register("fates", fates)
    connection.execute(_SAID, {"repeats": max_repeats})
    with whole(folder) as staged, reject_log(staged, stage) as log:
        _log_gone(connection, log)
        rows_out = captions_out = 0
        kept = connection.sql(_KEPT).to_arrow_reader(rows_per_shard)
        rows = (row for part in kept for row in part.to_pylist())
        for shard, batch in enumerate(batched(rows, rows_per_shard)):
            write_table(staged / f"rows-{shard:05}.parquet", batch, ROWS)
            rows_out += len(batch)
            captions_out += sum(len(row["captions"]) for row in batch)
        [counts] = connection.execute("""
            SELECT count(*), count(*) FILTER (key <> first), (SELECT count(*) FROM said) FROM fates
        """).fetchall()
        write_json(staged / "counts.json", {
            "rows_in": counts[0], "rows_out": rows_out, "merged_rows": counts[1],
            "captions_in": counts[2], "captions_out": captions_out,
            "rejected_rows": log.rows, "rejected_captions": log.captions,
        })  # fmt: skip


def _log_gone(connection: duckdb.DuckDBPyConnection, log: RejectLog) -> None:
    single = connection.execute("""
        SELECT file, line, image, caption, reason FROM said
        WHERE reason <> '' AND fate = '' ORDER BY key, pos
    """)
    for file, line, image, caption, reason in _fetch(single):
        log.caption({"file": file, "line": line, "image": image}, caption, reason)
    for file, line, image, captions, leads, reason, fated in _fetch(connection.execute(_GONE)):
        row = {"file": file, "line": line, "image": image, "captions": captions if fated else []}
        if leads:
            log.row(row, reason)
        else:  # a row that had joined the one that goes: counted as joined, its captions go too
            for caption in captions:
                log.caption(row, caption, reason)
