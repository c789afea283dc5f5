"""Image files with captions or class labels → collections: labelled folders and JSON lines.

A file that is missing, or that is there and fits nowhere, is an error: a collection is never
silently smaller than its files say. Pictures are JPEG, PNG or WebP; transparent parts become
white, a turn noted in a photo's EXIF data is ignored (published numbers ignore it as well).
"""

import csv
import hashlib
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from clip_italian.collection import Collection
from clip_italian.config import ConfigError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
TABLES = ("LOC_val_solution.csv", "labels.csv", "labels.tsv")
HEADERS = ("imageid", "image", "file")  # first cells of a table's header line, in lower case
_JPEG = b"\xff\xd8\xff"
_PROGRESS_FROM = 3000  # files; reading fewer takes no time worth a progress bar


def open_folder(path: str | Path, *, name: str = "", labels: str | Path = "") -> Collection:
    """Labelled images: `<path>/<class_id>/<image>`, or `<path>/<image>` and a table of classes.

    Args:
      path: a folder with one folder for each class, whose images may lie deeper; hidden files
        are passed over. Or, where there is a table, a folder with the images themselves.
      name: of the collection; empty takes the folder's.
      labels: the table: two columns, image (suffix optional) and class id, as .csv or .tsv with
        or without a header, or Kaggle's LOC_val_solution.csv. Empty takes one of `TABLES` in
        the folder.

    Raises:
      ConfigError: no such folder, a class without images, an image without class, a row without
        image, or a file in a class folder that is no picture.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"no folder of labelled images at {str(folder)!r}")
    images, others = find_images(folder)
    table = Path(labels) if labels else next((folder / t for t in TABLES if t in others), None)
    class_of = _read_table(table, images) if table else _folder_classes(folder, images, others)
    if not images:
        raise ConfigError(f"{folder}: no images ({', '.join(SUFFIXES)})")
    name = name or file_name(folder.resolve().name)
    return file_collection(name, "folder", images, class_of=[class_of[key] for key in images])


def open_jsonl(path: str | Path, *, name: str = "", language: str = "it") -> Collection:
    """Images with captions, class ids or both: one JSON object a line.

    Args:
      path: lines {"image": path within the file's folder or absolute, "captions": [texts],
        "class_id": text}. All lines have captions or none, likewise for class ids; other fields
        are ignored.
      name: of the collection; empty takes the file's.
      language: of the captions.

    Raises:
      ConfigError: naming file and line: what is wrong there; or which images are missing.
    """
    path = Path(path)
    images: dict[str, Path] = {}
    captions: list[list[str]] = []
    class_of: list[str] = []
    for where, row in read_jsonl(path):
        key = row.get("image")
        if not isinstance(key, str) or not key or key in images:
            raise ConfigError(f'{where}: "image" is {key!r}; give a path, each only once')
        images[key] = path.parent / key
        if "captions" in row:
            captions.append(clean_captions(row["captions"], where))
        if "class_id" in row:
            if not isinstance(row["class_id"], str) or not row["class_id"]:
                raise ConfigError(f'{where}: "class_id" is {row["class_id"]!r}; give a text')
            class_of.append(row["class_id"])
        if len(captions) not in (0, len(images)) or len(class_of) not in (0, len(images)):
            raise ConfigError(f'{where}: all lines need the same of "captions", "class_id"')
        if not captions and not class_of:
            raise ConfigError(f'{where}: needs "captions" or "class_id"')
    if not images:
        raise ConfigError(f"{path}: no lines")
    refuse_missing([k for k, file in images.items() if not file.is_file()], images, path.parent)
    name = name or file_name(path.stem)
    return file_collection(
        name, "jsonl", images, captions=captions, class_of=class_of, language=language
    )


def file_collection(
    name: str,
    protocol: str,
    images: Mapping[str, Path],
    *,
    captions: Sequence[Sequence[str]] = (),
    class_of: Sequence[str] = (),
    language: str = "it",
) -> Collection:
    """Collection of files that are all there; reads each once, for the fingerprint.

    Args:
      name: of the collection.
      protocol: likewise.
      images: key → file, in the order of the collection.
      captions: those of each image, or nothing.
      class_of: class id of each image, or nothing.
      language: of the captions.
    """
    paths = [str(path) for path in images.values()]
    counts = [len(texts) for texts in captions]
    class_ids = sorted(set(class_of))
    number = {class_id: i for i, class_id in enumerate(class_ids)}
    labels = [number[class_id] for class_id in class_of]
    sums = [
        _checksum(path)
        for path in tqdm(paths, desc=f"reading {name}", disable=len(paths) < _PROGRESS_FROM)
    ]
    contents = [list(images), sums, [list(texts) for texts in captions], labels, class_ids]
    return Collection(
        name=name,
        protocol=protocol,
        image_keys=list(images),
        read=lambda numbers: [_read_image(paths[n]) for n in numbers],
        fingerprint=hashlib.sha256(json.dumps(contents).encode()).hexdigest(),
        captions=[text for texts in captions for text in texts],
        caption_image=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        labels=np.array(labels, np.int32) if class_of else None,
        class_ids=class_ids,
        checksums=sums,
        language=language,
    )


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line n", object) of each line that is not blank. Raises `ConfigError`."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{where}: no JSON ({error})") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{where}: no JSON object but {line.strip()[:80]}")
            yield where, row


def read_text(path: Path) -> str:
    """A UTF-8 file's text; raises `ConfigError` where there is none."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"no file at {str(path)!r} ({error.strerror})") from error
    except UnicodeError as error:
        raise ConfigError(f"{path}: no UTF-8 text ({error})") from error


def clean_captions(texts: Any, where: str) -> list[str]:
    """Captions of one image in NFC, each run of white space one space; `ConfigError` if blank."""
    if not isinstance(texts, list) or not texts:
        raise ConfigError(f"{where}: captions are {texts!r}; give a list of texts")
    clean = []
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{where}: caption {text!r} is empty or no text")
        clean.append(" ".join(unicodedata.normalize("NFC", text).split()))
    return clean


def refuse_missing(missing: Sequence[str], wanted: Mapping[str, Any], place: str | Path) -> None:
    """Raises `ConfigError` if images are missing: how many of how many, the first, and where."""
    if missing:
        raise ConfigError(
            f"{len(missing):,} of {len(wanted):,} images are missing: {_first(missing)}; "
            f"looked in {place}"
        )


def file_name(text: str) -> str:
    """A name fit for a file: letters, digits and underscores."""
    return re.sub(r"\W+", "_", text).strip("_") or "images"


def find_images(folder: Path, *, links: bool = True) -> tuple[dict[str, Path], list[str]]:
    """Images below a folder, name within it → path, sorted; and the names of all other files.

    Args:
      folder: to look in; what is hidden in it is passed over.
      links: enter folders that are symbolic links; otherwise they count as other files.
    """
    images, others = {}, []
    for place, folders, names in os.walk(folder, followlinks=links):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if not links:
            linked = (Path(place, name) for name in folders)
            others += [p.relative_to(folder).as_posix() for p in linked if p.is_symlink()]
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            key = path.relative_to(folder).as_posix()
            if path.suffix.lower() in SUFFIXES:
                images[key] = path
            else:
                others.append(key)
    return dict(sorted(images.items())), sorted(others)


def _folder_classes(folder: Path, images: Mapping[str, Path], others: list[str]) -> dict[str, str]:
    """Class id of each image: its first folder."""
    if loose := [key for key in images if "/" not in key]:
        raise ConfigError(
            f"{folder}: {len(loose):,} images lie in no class folder: {_first(loose)}; make one "
            f"folder for each class, or add a table of labels ({', '.join(TABLES)})"
        )
    if strange := [key for key in others if "/" in key]:
        raise ConfigError(
            f"{folder}: {len(strange):,} files in class folders are no {', '.join(SUFFIXES)}: "
            f"{_first(strange)}; convert them or take them away"
        )
    class_of = {key: key.partition("/")[0] for key in images}
    found = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    visible = {name for name in found if not name.startswith(".")}
    if empty := sorted(visible - set(class_of.values())):
        raise ConfigError(f"{folder}: {len(empty):,} classes have no images: {_first(empty)}")
    return class_of


def _read_table(table: Path, images: Mapping[str, Path]) -> dict[str, str]:
    """Class id of each image; table and folder must name the same images."""
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    rows = list(csv.reader(io.StringIO(read_text(table)), delimiter=delimiter))
    kaggle = rows[:1] == [["ImageId", "PredictionString"]]
    known = {os.path.splitext(key)[0]: key for key in images} | {key: key for key in images}
    class_of: dict[str, str] = {}
    missing: dict[str, str] = {}
    for line, row in enumerate(rows, 1):
        if not row or (line == 1 and row[0].lower() in HEADERS):
            continue
        if len(row) != 2 or not row[0] or not row[1].strip():
            raise ConfigError(f"{table}, line {line}: {row} is not image and class id")
        class_id = row[1].split()[0] if kaggle else row[1].strip()
        key = known.get(row[0])
        if key in class_of:
            raise ConfigError(f"{table}, line {line}: {row[0]!r} has a class already")
        (missing if key is None else class_of)[key or row[0]] = class_id
    refuse_missing(list(missing), class_of | missing, f"the folder that {table} belongs to")
    if unlabelled := [key for key in images if key not in class_of]:
        raise ConfigError(
            f"{table}: no class for {len(unlabelled):,} of {len(images):,} images: "
            f"{_first(unlabelled)}"
        )
    return class_of


def _read_image(path: str) -> bytes:
    data = Path(path).read_bytes()
    return data if data.startswith(_JPEG) else on_white(data)


def on_white(data: bytes) -> bytes:
    """Encoded image without transparency: what lies below is any colour, most often black."""
    try:
        image = Image.open(io.BytesIO(data))
        if not image.has_transparency_data:
            return data
        image = image.convert("RGBA")
    except Exception:  # Pillow has many
        return data  # broken: whoever decodes it says which image it is
    white = Image.new("RGBA", image.size, "white")
    opaque = io.BytesIO()
    Image.alpha_composite(white, image).convert("RGB").save(opaque, "PNG", compress_level=1)
    return opaque.getvalue()


def _checksum(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
