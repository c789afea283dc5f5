"""Captions that a newspaper's editors wrote, as in "Foto del giorno" of Il Post: native Italian.

There is no public set. What a publisher gives is read as CSV, as JSON lines, or as a feed in XML.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from clip_italian.config import ConfigError
from data_prep.fields import Columns, distinct, make_row
from data_prep.jsonl import Jsonl
from data_prep.lines import find_files
from data_prep.markup import feed_items, plain_text
from data_prep.rows import Item, Reject, Row
from data_prep.tables import Csv

FEEDS = (".xml", ".rss", ".atom")
TABLES = (".csv", ".tsv")
JSON_LINES = (".jsonl", ".ndjson")


@dataclasses.dataclass(frozen=True)
class IlPost:
    """Reads an export of pictures with captions, each file by its ending.

    `.csv` (commas) and `.tsv` (tabs), both with quotes and a header; `.jsonl`; `.xml`, `.rss` and
    `.atom`, as WordPress exports them too. HTML in captions becomes plain text.
    """

    path: tuple[str, ...]
    """Files (.gz or not), folders with such files, or patterns."""
    caption_column: tuple[str, ...] = ()
    """Columns, keys or XML elements of captions (excerpt:encoded in WordPress); empty takes
    caption, and description in XML."""
    image_column: str = "image"
    """Column, key or XML element of the picture, a path or URL; for XML, image also finds
    enclosures, media:content, wp:attachment_url and the first <img> of the text."""
    id_column: str = ""
    """Column, key or XML element of the picture's id; empty takes its path or URL."""
    license: str = ""
    """Licence of pictures and captions where a row states none, as agreed with the publisher."""

    name = "il_post"

    def inputs(self) -> list[str]:
        """The files.

        Raises:
          ConfigError: naming `path`: nothing is there, or of no known format; naming a column flag:
            a table has no such column.
        """
        files = find_files(self.path, [*FEEDS, *TABLES, *JSON_LINES])
        for file in files:
            if _ending(file) not in (*FEEDS, *TABLES, *JSON_LINES):
                allowed = ", ".join((*TABLES, *JSON_LINES, *FEEDS))
                raise ConfigError(f"path: {file} has no known ending; use {allowed} (or .gz after)")
            reader = self._reader(file)
            if reader is not None:
                reader.inputs()
        return files

    def read(self, path: str) -> Iterator[Item]:
        """Rows of one file. An entry is a record, a line, or an `item` or `entry` of a feed.

        Reasons and skips: those of `Csv.read`, `Jsonl.read` and `data_prep.markup.feed_items`.
        """
        reader = self._reader(path)
        for item in reader.read(path) if reader is not None else self._feed(path):
            yield self._finished(item) if isinstance(item, Row) else item

    def _reader(self, path: str) -> Csv | Jsonl | None:
        """The reader for the file's format; none for a feed."""
        files, captions = (path,), self.caption_column or ("caption",)
        if _ending(path) in TABLES:
            delimiter = "\t" if _ending(path) == ".tsv" else ","
            return Csv(files, captions, self.image_column, self.id_column, delimiter)
        if _ending(path) in JSON_LINES:
            return Jsonl(files, captions, self.image_column, self.id_column)
        return None

    def _feed(self, path: str) -> Iterator[Row | Reject]:
        captions = self.caption_column or ("description",)
        columns = Columns(captions, self.image_column, self.id_column)
        # Not what feeds call `source` or `url`: those are of the page.
        wanted = {*captions, self.image_column, self.id_column}
        for line, fields in feed_items(path):
            if isinstance(fields, Reject):
                yield fields
            else:
                parts = {name: text.strip() for name, text in fields.items() if name in wanted}
                yield make_row(line, parts, columns)

    def _finished(self, row: Row) -> Row | Reject:
        captions = distinct([plain_text(caption)[0] for caption in row.captions])
        if not captions:
            return Reject(row.line, "no caption", row.image)
        licensed = row.license or self.license
        return dataclasses.replace(row, captions=captions, license=licensed)


def _ending(path: str) -> str:
    name = Path(path).name.lower().removesuffix(".gz")
    return Path(name).suffix
