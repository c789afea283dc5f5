"""JSON lines: one object a line, `{"image": ..., "captions": [...]}`."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from data_prep.fields import IMAGE_ID, Columns, make_row
from data_prep.lines import find_files, text_lines
from data_prep.rows import Item, Reject, Row, Skip

OLDER_NAMES = ("image_path", "image_url")  # the first is that of 2021


@dataclasses.dataclass(frozen=True)
class Jsonl:
    """Reads JSON lines; the files of 2021, with `image_path`, are read as well.

    Optional keys of an object: `split` (dev and test count as validation), `source`, `url`,
    `license`, `original_captions`, `translator`.
    """

    path: tuple[str, ...]
    """JSON lines files (.gz or not), folders with such files, or patterns."""
    caption_column: tuple[str, ...] = ("captions",)
    """Keys of captions, each a list of texts or one text."""
    image_column: str = "image"
    """Key of the picture: a path or a URL; without it, `image_path` and `image_url` count."""
    id_column: str = IMAGE_ID
    """Key of the picture's id; without it, the path or URL is the id."""

    name = "jsonl"

    def inputs(self) -> list[str]:
        """The files; raises `ConfigError`, naming `path`: nothing is there."""
        return find_files(self.path, [".jsonl", ".ndjson"])

    def read(self, path: str) -> Iterator[Item]:
        """Rows of one file. An entry is a line.

        Reasons: `bad JSON`, `not a JSON object`, those of `data_prep.fields.make_row` and of
        `data_prep.lines.text_lines`. Skipped: `blank line`.
        """
        columns = Columns(self.caption_column, self.image_column, self.id_column)
        blank = 0
        for number, line in text_lines(path):
            if isinstance(line, Reject):
                yield line
            elif not line.strip():
                blank += 1
            else:
                yield _item(number, line, columns)
        if blank:
            yield Skip("blank line", blank)


def _item(number: int, line: str, columns: Columns) -> Row | Reject:
    fields = parse_row(line)
    if isinstance(fields, str):
        return Reject(number, fields, line[:100])
    if not fields.get(columns.image):
        older = (fields[name] for name in OLDER_NAMES if fields.get(name))
        fields[columns.image] = next(older, None)
    return make_row(number, fields, columns)


def parse_row(line: str) -> dict[str, Any] | str:
    """One line → its object, or why it has none: `bad JSON`, `not a JSON object`."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "bad JSON"
    return row if isinstance(row, dict) else "not a JSON object"
