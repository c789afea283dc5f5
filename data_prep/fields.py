"""Named fields, as JSON lines and tables have them → rows."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from clip_italian.config import ConfigError
from data_prep.rows import Reject, Row

SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "validation",
}
IMAGE_ID = "image_id"
# Columns of a table that are taken where they are there. `source` is none of them: tables use the
# word for newspapers, collections, ...
OPTIONAL = (IMAGE_ID, "split", "url", "license", "original_captions", "translator")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Where a row's parts are.

    Attributes:
      captions: columns of captions, each a text or a list of texts.
      image: column of the picture: a path, a URL, bytes, or a struct of `bytes` and `path`.
      image_id: column of the id; empty takes `image_id` where there is one.
    """

    captions: tuple[str, ...]
    image: str
    image_id: str = ""

    def check(self, path: str, found: Collection[str]) -> None:
        """Raises `ConfigError`, naming the flag, for a column that is not among those found."""
        flags = [("caption_column", column) for column in self.captions]
        flags += [("image_column", self.image), ("id_column", self.image_id)]
        for flag, column in flags:
            if column not in found and (column or flag != "id_column"):
                raise ConfigError(
                    f"{flag}: no column {column!r} in {path}; "
                    f"its columns are: {', '.join(map(repr, found)) or 'none'}"
                )

    def wanted(self, found: Collection[str]) -> list[str]:
        """Those of the columns that are used, in their order."""
        used = {*self.captions, self.image, self.image_id, *OPTIONAL}
        return [column for column in found if column in used]


class _BadEntryError(Exception):
    """An entry cannot be used; the message is the reason."""


def make_row(line: int, fields: Mapping[str, Any], columns: Columns) -> Row | Reject:
    """One entry's fields → its row.

    Blank captions and repeated ones are left out, with their originals where there is one for
    each. Reasons: `no caption`, `captions are not texts`, `no image`, `image is no path`,
    `not a text` (in another field), `bad Unicode` (half a surrogate pair), `NUL character`.
    """
    try:
        captions, originals = _captions(fields, columns.captions)
        image, data = _image(fields.get(columns.image))
        return Row(
            line,
            captions,
            image,
            image_id=_text(fields.get(columns.image_id or IMAGE_ID)),
            image_bytes=data,
            split=SPLIT_NAMES.get(_text(fields.get("split")).strip().lower(), ""),
            source=_text(fields.get("source")),
            url=_text(fields.get("url")),
            license=_text(fields.get("license")),
            original_captions=originals,
            translator=_text(fields.get("translator")),
        )
    except _BadEntryError as error:
        return Reject(line, str(error))


def distinct(captions: Collection[str]) -> tuple[str, ...]:
    """Captions in their order, without blank ones and repetitions."""
    return tuple(dict.fromkeys(caption for caption in captions if caption.strip()))


def _captions(
    fields: Mapping[str, Any], columns: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = [text for column in columns for text in _texts(fields.get(column))]
    captions = distinct(found)
    if not captions:
        raise _BadEntryError("no caption")
    originals = _texts(fields.get("original_captions"))
    if len(originals) == len(found):
        originals = [originals[found.index(caption)] for caption in captions]
        return captions, tuple(originals) if any(map(str.strip, originals)) else ()
    return captions, distinct(originals)


def _texts(value: Any) -> list[str]:
    """A text or a list of texts; None stands for a blank one."""
    values = value if isinstance(value, list | tuple) else [value]
    if not all(text is None or isinstance(text, str) for text in values):
        raise _BadEntryError("captions are not texts")
    return [_text(text) for text in values] if value is not None else []


def _image(value: Any) -> tuple[str, bytes]:
    """Path or URL, or else the contents of the file."""
    if isinstance(value, Mapping):  # as Hugging Face stores pictures
        value = value.get("bytes") or value.get("path")
    if value is None or value in ("", b""):
        raise _BadEntryError("no image")
    if isinstance(value, bytes):
        return "", value
    if not isinstance(value, str):
        raise _BadEntryError("image is no path")
    return _text(value), b""


def _text(value: Any) -> str:
    if isinstance(value, list | tuple | dict | bytes):
        raise _BadEntryError("not a text")
    text = "" if value is None else str(value)
    if problem := text_problem(text):
        raise _BadEntryError(problem)
    return text


def text_problem(text: str) -> str:
    """Why a text cannot be kept: `NUL character`, `bad Unicode` (half a surrogate pair), or ""."""
    if "\0" in text:
        return "NUL character"
    try:
        text.encode()
    except UnicodeError:
        return "bad Unicode"
    return ""
