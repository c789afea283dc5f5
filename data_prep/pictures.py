"""The pictures of one shard: fetched or read, checked, shrunk, hashed."""

import bisect
import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from clip_italian.config import ConfigError
from data_prep.download import DownloadOptions, download
from data_prep.images import MAX_BYTES, ImageFilters, prepare_image
from data_prep.store import (
    IMAGES,
    read_json,
    read_table,
    reject_log,
    whole,
    write_json,
    write_table,
)

REPORT_EVERY = 50  # pictures
# Faults of a file that was there. On the web they are daily bread; on a disk they are a warning.
BAD_FILES = {"not an image", "broken image", "too many pixels", "too many bytes"}
_URL = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # a letter alone is a Windows drive
Found = tuple[dict[str, Any], bytes, str, str, bool]  # row, data, reason, detail, may pass


def prepare_pictures(
    rows_file: Path,
    folder: Path,
    root: Path,
    filters: ImageFilters,
    options: DownloadOptions,
    carried: Path,
    earlier: Path | None = None,
    *,
    report: Callable[[Counter[str]], Any] = lambda counts: None,
) -> None:
    """The pictures of one shard → `images.parquet`, rejects and counts.

    Args:
      rows_file: the shard's rows.
      folder: where the finished shard goes.
      root: folder that paths are relative to and must stay within.
      filters: size and limits of pictures.
      options: how URLs are fetched.
      carried: folder of the finished inputs, some of which hold the pictures themselves.
      earlier: a finished version of this shard, from which everything is taken but what failed
        in a way that may pass.
      report: is told now and then how many pictures were `good` or failed for which reason.
    """
    rows = {row["key"]: row for row in read_table(rows_file)}
    if not root.is_dir():
        raise ConfigError(f"root = {str(root)!r} is no folder on this machine; share it")
    images: list[dict[str, Any]] = []
    failed: dict[int, tuple[str, str]] = {}
    todo = set(rows)
    if earlier is not None:
        images = read_table(earlier / "images.parquet")
        todo = set(read_json(earlier / "again.json"))
        before = read_json(earlier / "failed.json")
        failed = {int(key): tuple(why) for key, why in before.items() if int(key) not in todo}
    counts: Counter[str] = Counter()
    may_pass: list[int] = []
    wanted = [row for key, row in rows.items() if key in todo]
    for row, data, reason, detail, passing in _contents(wanted, root, options, carried):
        image = reason or prepare_image(data, filters)
        if isinstance(image, str):
            failed[row["key"]] = image, detail
            may_pass += [row["key"]] if passing else []
            counts[image] += 1
        else:
            images.append({
                "key": row["key"], "jpeg": image.jpeg, "image_hash": image.image_hash,
                "thumbnail": image.thumbnail, "digest": digest(data),
            })  # fmt: skip
            counts["good"] += 1
        if counts.total() >= REPORT_EVERY:
            report(counts)
            counts = Counter()
    report(counts)
    if len(images) + len(failed) != len(rows):
        raise RuntimeError(
            f"{rows_file}: {len(rows)} rows, {len(images)} pictures, {len(failed)} failed"
        )
    _write(folder, rows, images, failed, sorted(may_pass))


def replace_shard(newer: Path, folder: Path) -> Path:
    """Puts a newer version of a shard in its place, which is returned."""
    old = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    newer.rename(folder)
    shutil.rmtree(old)
    return folder


def recover_shards(stage: Path) -> None:
    """Mends what a run left that was stopped while it replaced shards."""
    for newer in stage.glob("again-*"):
        shutil.rmtree(newer)
    for old in stage.glob(".old-*"):
        folder = stage / old.name.removeprefix(".old-")
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)


def digest(data: bytes) -> str:
    """32 hex digits of the picture's file: equal files, equal digests."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def is_online(row: Mapping[str, Any]) -> bool:
    """Whether the row's picture has to be fetched; `ftp:` and the like count, to be refused."""
    return not row["has_bytes"] and bool(_URL.match(row["image"]))


def has_local(rows_file: Path) -> bool:
    """Whether some picture of a shard is a local file."""
    rows = read_table(rows_file, ["image", "has_bytes"])
    return any(not row["has_bytes"] and not is_online(row) for row in rows)


def split_by_digest(picture: str, validation_share: float) -> str:
    """`train` or `validation`, by the picture's digest alone: stable when data is added."""
    return "validation" if int(picture[:16], 16) < validation_share * 2**64 else "train"


def _write(
    folder: Path,
    rows: Mapping[int, dict[str, Any]],
    images: list[dict[str, Any]],
    failed: Mapping[int, tuple[str, str]],
    may_pass: list[int],
) -> None:
    with whole(folder) as staged, reject_log(staged, "pictures") as log:
        for key in sorted(failed):
            log.row(rows[key], *failed[key])
        images.sort(key=lambda image: image["key"])
        write_table(staged / "images.parquet", images, IMAGES)
        write_json(staged / "again.json", may_pass)
        write_json(staged / "failed.json", failed)
        local = [row for row in rows.values() if not is_online(row)]
        bad = sum(failed.get(row["key"], ("",))[0] in BAD_FILES for row in local)
        write_json(staged / "counts.json", {
            "local": len(local), "bad_local": bad, "rows_in": len(rows), "rows_out": len(images),
            "captions_in": sum(len(row["captions"]) for row in rows.values()),
            "captions_out": sum(len(rows[image["key"]]["captions"]) for image in images),
            "rejected_rows": log.rows, "rejected_captions": log.captions,
        })  # fmt: skip


def _contents(
    rows: Sequence[dict[str, Any]], root: Path, options: DownloadOptions, carried: Path
) -> Iterator[Found]:
    """The file of every picture, or why there is none; in any order."""
    yield from _carried_contents([row for row in rows if row["has_bytes"]], carried)
    for row in rows:
        if not row["has_bytes"] and not is_online(row):
            data, reason = read_picture(row["image"], root)
            yield row, data, reason, "", True  # the file may be mended, or come later
    online = [row for row in rows if is_online(row)]
    if online:
        for one in download([row["image"] for row in online], options):
            yield online[one.index], one.data, one.reason, one.detail, one.again


def _carried_contents(rows: Sequence[dict[str, Any]], carried: Path) -> Iterator[Found]:
    wanted = {row["key"]: row for row in rows}
    for number in sorted({key >> 40 for key in wanted}):
        files = sorted((carried / f"{number:05}").glob("bytes-*.parquet"))
        starts = [int(file.stem.removeprefix("bytes-")) for file in files]  # number of a first row
        places = {key & (2**40 - 1) for key in wanted if key >> 40 == number}
        for place in sorted({bisect.bisect_right(starts, one) - 1 for one in places}):
            for batch in pq.ParquetFile(files[place]).iter_batches(16):
                for one in batch.to_pylist():
                    if one["key"] in wanted:
                        yield wanted[one["key"]], one["image_bytes"], "", "", False


def read_picture(path: str, root: Path) -> tuple[bytes, str]:
    """A local picture file → its contents and ""; or b"" and the reason why not."""
    if not path:
        return b"", "no image path"
    try:
        file = (root / path).resolve()  # follows links, so that none leads out
        if not file.is_relative_to(root.resolve()):
            return b"", "image path outside root"
        if not file.is_file():
            return b"", "image missing"
        if file.stat().st_size > MAX_BYTES:
            return b"", "too many bytes"
        return file.read_bytes(), ""
    except (OSError, ValueError):  # a NUL in the path, a name too long, no permission
        return b"", "image cannot be read"
