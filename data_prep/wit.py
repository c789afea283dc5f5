"""WIT, the Wikipedia-based Image Text data set: gzipped TSV files, all languages mixed.

K. Srinivasan et al., "WIT: Wikipedia-based Image Text Dataset for Multimodal Multilingual Machine
Learning", SIGIR 2021. Quotes are plain characters there; a row is a line.
"""

import dataclasses
import hashlib
import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from clip_italian.config import ConfigError
from data_prep.fields import distinct
from data_prep.lines import find_files, read_lines
from data_prep.rows import Item, Reject, Row, Skip

COLUMNS = (
    "language", "page_url", "image_url", "page_title", "section_title",
    "hierarchical_section_title", "caption_reference_description",
    "caption_attribution_description", "caption_alt_text_description", "mime_type",
    "original_height", "original_width", "is_main_image", "attribution_passes_lang_id",
    "page_changed_recently", "context_page_description", "context_section_description",
)  # fmt: skip
CaptionColumn = Literal[
    "caption_reference_description",
    "caption_attribution_description",
    "caption_alt_text_description",
]
_TABS = len(COLUMNS) - 1
_IMAGE_URL, _MIME_TYPE = COLUMNS.index("image_url"), COLUMNS.index("mime_type")
_LONGEST_NAME = 255  # bytes, of a file
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,5}\Z")


@dataclasses.dataclass(frozen=True)
class Wit:
    """Reads WIT; rows of other languages are counted and skipped without being decoded.

    WIT states no licence per row: its texts are CC BY-SA, each picture has its own.
    """

    path: tuple[str, ...]
    """Files of WIT (.tsv or .tsv.gz), folders with such files, or patterns like wit/*.tsv.gz."""
    language: str = "it"
    """Language to keep, as WIT's first column names it; empty keeps every language."""
    caption_column: tuple[CaptionColumn, ...] = ("caption_reference_description",)
    """Columns of captions; of several, every one that is filled in becomes a caption."""
    images: str = ""
    """Folder (within root) of pictures had before, each named by the last part of its URL, unquoted
    (Caffè_Florian.jpg), or by the SHA-1 of the whole URL and the ending (<40 digits>.jpg); empty
    takes them from their URLs."""

    name = "wit"

    def inputs(self) -> list[str]:
        """The files, each of which begins with WIT's 17 column names.

        Raises:
          ConfigError: naming `path`, with the columns that were found instead.
        """
        files = find_files(self.path, [".tsv"])
        for file in files:
            if problem := _header_problem(next(read_lines(file), b"")):
                raise ConfigError(f"path: {file} is no file of WIT: {problem}")
        if self.images and not Path(self.images).is_dir():
            raise ConfigError(f"images: no folder at {self.images!r}")
        return files

    def read(self, path: str) -> Iterator[Item]:
        """Rows of one file. An entry is a line but the first.

        Reasons: `wrong number of columns`, `bad UTF-8`, `NUL character`, `no caption`,
        `no image URL`, `no raster image` (SVG, sounds, ...), `not a WIT header` (of all lines),
        and those of `data_prep.lines.read_lines`. Skipped: `other language`, `blank line`.
        """
        lines = read_lines(path)
        if problem := _header_problem(next(lines, b"")):
            if entries := sum(1 for _ in lines):
                yield Reject(1, "not a WIT header", problem, entries)
            return
        wanted = f"{self.language}\t".encode() if self.language else b""
        skipped: Counter[str] = Counter()
        others = 0  # most lines end there, so it is a plain number
        for number, line in enumerate(lines, 2):
            if isinstance(line, Reject):
                yield line
            elif line.count(b"\t") != _TABS:
                if line:
                    yield Reject(number, "wrong number of columns", repr(line[:100]))
                else:
                    skipped["blank line"] += 1
            elif line.startswith(wanted):
                yield self._item(number, line)
            else:
                others += 1
        skipped["other language"] += others
        yield from (Skip(reason, entries) for reason, entries in skipped.items() if entries)

    def _item(self, number: int, line: bytes) -> Row | Reject:
        if b"\0" in line:
            return Reject(number, "NUL character", repr(line[:100]))
        try:
            fields = line.decode().split("\t")
        except UnicodeError:
            return Reject(number, "bad UTF-8", repr(line[:100]))
        captions = distinct([fields[COLUMNS.index(column)] for column in self.caption_column])
        url, mime_type = fields[_IMAGE_URL], fields[_MIME_TYPE]
        if not captions:
            return Reject(number, "no caption", url)
        if not url.startswith(("http://", "https://")):
            return Reject(number, "no image URL", url)
        if mime_type and (not mime_type.startswith("image/") or "svg" in mime_type):
            return Reject(number, "no raster image", mime_type)
        image = local_picture(self.images, url) if self.images else url
        return Row(number, captions, image, image_id=url, url=url)


def _header_problem(line: bytes | Reject) -> str:
    if isinstance(line, Reject):
        return line.reason
    found = line.decode(errors="replace").split("\t")
    if found == list(COLUMNS):
        return ""
    return f"its first line has {len(found)} columns, {', '.join(found)[:500]}"


def local_picture(folder: str, url: str) -> str:
    """Where the picture of a URL is in a folder: under its own name, or else under the URL's SHA-1.

    The path is absolute, whether the file is there or not.
    """
    name = urllib.parse.unquote(url.partition("?")[0].partition("#")[0].rpartition("/")[2])
    fits = name not in ("", ".", "..") and not {"/", "\0"} & set(name)
    path = os.path.join(os.path.abspath(folder), name)
    if fits and len(name.encode()) <= _LONGEST_NAME and os.path.exists(path):
        return path
    digest = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
    ending = _ENDING.search(name)
    return os.path.join(os.path.abspath(folder), digest + (ending[0].lower() if ending else ""))
