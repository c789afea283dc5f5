"""What must not be in training: ids and pictures of the evaluation sets that a user names."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from clip_italian.config import ConfigError
from clip_italian.data.records import INDEX_FILE, SPLITS, open_split, parse_record
from data_prep.images import ImageFilters, PreparedImage, prepare_image
from data_prep.pictures import read_picture
from data_prep.store import batched, read_json, whole, write_json, write_table

HASHES = pa.schema({"name": pa.string(), "image_hash": pa.int64(), "thumbnail": pa.binary()})
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_COCO_ID = re.compile(r"(?:.*/)?(?:COCO_[a-z]+20\d\d_)?0*(\d+)(?:\.jpg)?", re.IGNORECASE)


def plain_id(image_id: str) -> str:
    """`COCO_val2014_000000000359.jpg`, `000000000359.jpg` and `359` are all `359`."""
    match = _COCO_ID.fullmatch(image_id)
    return match[1] if match else image_id


def load_ids(path: str) -> set[str]:
    """Plain ids from one file of `guard_ids`.

    COCO JSON (`images` or `annotations`), a JSON list of ids, JSON lines with `image_id`, or text
    with an id or file name a line; gzipped or not.

    Raises:
      ConfigError: naming `guard_ids`: no such file, or no id in it.
    """
    try:
        data = Path(path).read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, UnicodeError, EOFError, zlib.error) as error:
        raise ConfigError(f"guard_ids: {path} cannot be read ({error})") from error
    try:
        ids = {plain_id(str(found)) for found in _ids(text)}
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"guard_ids: {path} has an entry without an id ({error!r})") from error
    if not ids:
        raise ConfigError(f"guard_ids: {path} holds no ids")
    return ids


def _ids(text: str) -> Iterator[Any]:
    try:
        whole_file = json.loads(text)
    except ValueError:
        whole_file = None
    if isinstance(whole_file, dict) and ("images" in whole_file or "annotations" in whole_file):
        yield from (image["id"] for image in whole_file.get("images", ()))
        yield from (note["image_id"] for note in whole_file.get("annotations", ()))
        return
    if isinstance(whole_file, list):
        yield from (one["image_id"] if isinstance(one, dict) else one for one in whole_file)
        return
    for line in filter(None, map(str.strip, text.splitlines())):
        yield json.loads(line)["image_id"] if line.startswith("{") else line


def pictures_of(path: str) -> list[str]:
    """The picture files below a folder of `guard_pictures`, sorted.

    Raises:
      ConfigError: naming `guard_pictures`: no such folder, or no picture in it.
    """
    folder = Path(path).absolute()  # workers may stand elsewhere
    if (folder / INDEX_FILE).exists():
        return [
            str(folder / split)
            for split in SPLITS
            if read_json(folder / INDEX_FILE)["records"].get(split)
        ]
    found = sorted(str(file) for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not found:
        raise ConfigError(f"guard_pictures: {path} is no folder of pictures or of records")
    return found


def hash_pictures(files: Sequence[str], folder: Path, name: str) -> None:
    """Hashes of one shard of an evaluation set's pictures → `hashes.parquet` and counts."""
    rows, bad = [], []
    for file in files:
        for data in _read(Path(file)):
            image = prepare_image(data, ImageFilters()) if data else "image cannot be read"
            if isinstance(image, PreparedImage):
                rows.append({
                    "name": name, "image_hash": image.image_hash, "thumbnail": image.thumbnail,
                })  # fmt: skip
            else:
                bad.append(f"{file}: {image}")
    with whole(folder) as staged:
        write_table(staged / "hashes.parquet", rows, HASHES)
        write_json(staged / "counts.json", {"pictures": len(rows), "bad": bad})


def _read(path: Path) -> Iterator[bytes]:
    """The picture in a file; or all pictures of a split of records."""
    if path.parent.joinpath(INDEX_FILE).exists() and path.name in SPLITS:
        records = open_split(path.parent.parent, path.parent.name, path.name)
        for numbers in batched(range(len(records)), 256):
            yield from (parse_record(data).image for data in records.read(numbers))
    else:
        path = path.resolve()  # the user named this folder: its links may lead anywhere
        yield read_picture(path.name, path.parent)[0]
