"""MSCOCO-IT: Italian captions of COCO's photos, one JSON file a part, in COCO's own format.

A. Scaiella, D. Croce, R. Basili, "Large scale datasets for Image and Video Captioning in Italian",
Italian Journal of Computational Linguistics 5(2), 2019. Ids are integers in one file and texts in
the next. The largest file has about 50 MB, so a file is read as a whole.
"""

import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from clip_italian.config import ConfigError
from data_prep.fields import distinct, text_problem
from data_prep.lines import find_files
from data_prep.rows import Item, Reject, Row

FOLDERS = ("", "train2014", "val2014", "train2017", "val2017")


@dataclasses.dataclass(frozen=True)
class MscocoIt:
    """Reads MSCOCO-IT's files; COCO's photos have to be there already."""

    path: tuple[str, ...]
    """Files of captions (.json or .json.gz), folders with such files, or patterns."""
    images: str
    """Folder (within root) of COCO's photos, of 2014 or 2017 (the photos are the same, only named
    otherwise); they may be in train2014, val2014, train2017 and val2017 inside it."""
    split: Literal["", "train", "validation"] = ""
    """Split of all rows; empty decides by a hash of each picture."""
    translated_by: str = "MSCOCO-IT (machine translation)"
    """Who translated the captions, for the records; say so where a person validated them."""

    name = "mscoco_it"

    def inputs(self) -> list[str]:
        """The files; raises `ConfigError`, naming `path` or `images`: nothing is there."""
        if not Path(self.images).is_dir():
            raise ConfigError(f"images: no folder at {self.images!r}; name that of COCO's photos")
        return find_files(self.path, [".json"])

    def read(self, path: str) -> Iterator[Item]:
        """One row per photo, in the order of their first captions. An entry is a caption.

        A row's line is the place of its first caption in the list `annotations`, from 1; a photo
        that has none is rejected at its place in the list `images`, as no entry.

        Reasons: `broken archive`, `bad UTF-8`, `bad JSON`, `not COCO captions` (of the file, one
        entry); `bad caption entry`, `no caption`, `bad Unicode`, `NUL character`, `caption without
        image` (no photo in the folder), `image without caption`.
        """
        content = _load(path)
        if isinstance(content, str):
            yield Reject(1, content)
            return
        groups: dict[int, list[tuple[int, str]]] = {}  # COCO id → places and captions
        named: set[int] = set()
        for place, entry in enumerate(content["annotations"], 1):
            image_id, caption, reason = _parse(entry)
            named.add(image_id)
            if reason:
                yield Reject(place, reason, ascii(entry)[:500])
            else:
                groups.setdefault(image_id, []).append((place, caption))
        infos = _image_infos(content)
        files = _index(self.images)
        licenses = _licenses(content)
        for image_id, captions in groups.items():
            _, info = infos.get(image_id, (0, {}))
            yield self._item(image_id, captions, info, files, licenses)
        for image_id, (place, info) in infos.items():
            if image_id not in named:
                name = str(info.get("file_name", image_id))
                yield Reject(place, "image without caption", name, entries=0)

    def _item(
        self,
        image_id: int,
        captions: list[tuple[int, str]],
        info: Mapping[str, Any],
        files: Mapping[str, str],
        licenses: Mapping[Any, str],
    ) -> Row | Reject:
        names = [_text(info.get("file_name")), f"{image_id:012}.jpg"]
        names += [f"COCO_{part}2014_{image_id:012}.jpg" for part in ("train", "val")]
        file = next((files[name] for name in names if name in files), None)
        line, entries = captions[0][0], len(captions)
        if file is None:
            return Reject(line, "caption without image", names[0] or names[1], entries)
        return Row(
            line,
            distinct([caption for _, caption in captions]),
            file,
            image_id=str(image_id),
            split=self.split,
            url=_text(info.get("url")),
            license=licenses.get(_text(info.get("license")), ""),
            translator=self.translated_by,
            entries=entries,
        )


def _load(path: str) -> dict[str, Any] | str:
    """The file's object with its list of annotations, or why there is none."""
    try:
        data = Path(path).read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        content = json.loads(data.decode("utf-8-sig"))
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return "broken archive"
    except UnicodeError:
        return "bad UTF-8"
    except (ValueError, RecursionError):
        return "bad JSON"
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        return "not COCO captions"
    return content


def _parse(entry: Any) -> tuple[int, str, str]:
    """Id (-1 where there is none), caption, and why it cannot be used."""
    if not isinstance(entry, dict) or (image_id := plain_number(entry.get("image_id"))) is None:
        return -1, "", "bad caption entry"
    caption = entry.get("caption")
    if not isinstance(caption, str | None):
        return image_id, "", "bad caption entry"
    if not caption or not caption.strip():
        return image_id, "", "no caption"
    return image_id, caption, text_problem(caption)


def plain_number(value: Any) -> int | None:
    """COCO's id, which is an integer or a text of digits; None for anything else."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _image_infos(content: Mapping[str, Any]) -> dict[int, tuple[int, dict[str, Any]]]:
    """COCO id → place in the list (from 1) and entry; what is malformed there is not needed."""
    images = content.get("images")
    infos: dict[int, tuple[int, dict[str, Any]]] = {}
    for place, info in enumerate(images if isinstance(images, list) else [], 1):
        image_id = plain_number(info.get("id")) if isinstance(info, dict) else None
        if image_id is not None:
            infos.setdefault(image_id, (place, info))
    return infos


def _licenses(content: Mapping[str, Any]) -> dict[str, str]:
    """Number of a licence → its name."""
    found = content.get("licenses")
    entries = found if isinstance(found, list) else []
    return {
        _text(entry.get("id")): _text(entry.get("name"))
        for entry in entries
        if isinstance(entry, dict)
    }


def _text(value: Any) -> str:
    """A number or a text that can be written; empty for anything else."""
    text = str(value) if isinstance(value, int | str) else ""
    return "" if text_problem(text) else text


def _index(folder: str) -> dict[str, str]:
    """File name → absolute path, from one listing of each folder."""
    files: dict[str, str] = {}
    for part in FOLDERS:
        place = os.path.join(os.path.abspath(folder), part)
        if os.path.isdir(place):
            for entry in os.scandir(place):
                files.setdefault(entry.name, entry.path)
    return files
