"""Lines and CSV records of large text files, gzipped or not: streamed, counted, never trusted.

Every line of a file comes out exactly once, as its contents or as a `Reject` that says why not:
the place of an item is its line number. Whatever the contents, nothing is raised and at most a
few MB are held.
"""

import csv
import glob
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clip_italian.config import ConfigError
from data_prep.rows import Reject

MAX_LINE_BYTES = 4 << 20  # longer lines are read past, and rejected
MAX_RECORD_LINES = 1000  # of a CSV record; an open quote must not swallow the file
_COMPRESSED_BLOCK = 64 << 10  # what a wrong checksum costs at most
_BLOCK = 1 << 20
_BOM = b"\xef\xbb\xbf"


def find_files(path: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """Files that `path` names: sorted within each of its parts, none of them twice.

    Args:
      path: files, folders or glob patterns (`**` goes into folders).
      suffixes: of the files taken from a folder (`.tsv`); with `.gz` behind it, they count too.

    Raises:
      ConfigError: naming `path`: nothing is there.
    """
    endings = tuple(suffix + packed for suffix in suffixes for packed in ("", ".gz"))
    files: dict[str, None] = {}
    for part in path:
        if Path(part).is_dir():
            found = [str(p) for p in Path(part).iterdir() if p.name.lower().endswith(endings)]
        else:
            # A file whose name only looks like a pattern is that file.
            found = [part] if Path(part).exists() else glob.glob(part, recursive=True)
        found = [file for file in found if Path(file).is_file()]
        if not found:
            raise ConfigError(
                f"path: no file at {part!r}; name files, folders with files that end in "
                f"{', '.join(endings)}, or patterns"
            )
        files |= dict.fromkeys(sorted(found))
    if not files:
        raise ConfigError("path is empty; name at least one file, folder or pattern")
    return list(files)


class BrokenArchiveError(Exception):
    """Compressed data ends too early or makes no sense."""


def read_lines(path: str) -> Iterator[bytes | Reject]:
    """Lines of a file without their ends (LF or CRLF); a byte order mark at the start is dropped.

    Reasons: `line too long` (above 4 MB), `broken archive` (gzip; the line at which reading
    stopped, as the last item: all that came before is kept).
    """
    rest, number, skipping = b"", 0, False
    try:
        for block in read_blocks(path):
            lines = block.split(b"\n")
            lines[0] = rest + lines[0]
            rest = lines.pop()
            for line in lines:
                number += 1
                if skipping or len(line) > MAX_LINE_BYTES:
                    skipping = False
                    yield Reject(number, "line too long")
                else:
                    yield _contents(line, number)
            if len(rest) > MAX_LINE_BYTES:
                rest, skipping = b"", True
    except BrokenArchiveError as error:
        yield Reject(number + 1, "broken archive", str(error))
        return
    if skipping:
        yield Reject(number + 1, "line too long")
    elif rest:  # no line end at the end of the file
        yield _contents(rest, number + 1)


def _contents(line: bytes, number: int) -> bytes:
    if number == 1:
        line = line.removeprefix(_BOM)
    return line[:-1] if line.endswith(b"\r") else line


def read_blocks(path: str) -> Iterator[bytes]:
    """Contents of a file, unpacked if it is gzipped; raises `BrokenArchiveError`."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        blocks = iter(lambda: file.read(_COMPRESSED_BLOCK if packed else _BLOCK), b"")
        yield from _unpacked(blocks) if packed else blocks


def _unpacked(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Contents of all members of a gzip file; isa-l is twice as fast as zlib."""
    from isal import igzip_lib

    wrong: Any = igzip_lib.IsalError  # the stubs say an instance
    data = next(blocks, b"")
    while data.strip(b"\0"):  # zeros may follow the last member
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        while not member.eof:
            if member.needs_input:
                data = data or next(blocks, b"")
                if not data:
                    raise BrokenArchiveError("ends too early")
            try:
                unpacked = member.decompress(data, _BLOCK)
            except wrong as error:
                raise BrokenArchiveError(str(error)) from error
            data = b""
            yield unpacked
        data = member.unused_data or next(blocks, b"")


def decode_line(line: bytes) -> str | None:
    """The text of a line, None where it is no UTF-8."""
    try:
        return line.decode()
    except UnicodeError:
        return None


def text_lines(path: str) -> Iterator[tuple[int, str | Reject]]:
    """Number (from 1) and text of every line.

    Reasons: those of `read_lines`, `bad UTF-8` and `NUL character`.
    """
    for number, line in enumerate(read_lines(path), 1):
        if isinstance(line, Reject):
            yield number, line
        elif b"\0" in line:
            yield number, Reject(number, "NUL character", repr(line[:100]))
        elif (text := decode_line(line)) is None:
            yield number, Reject(number, "bad UTF-8", repr(line[:100]))
        else:
            yield number, text


class _Feed:
    """Gives lines to the CSV parser and remembers those of the record at hand."""

    def __init__(self, lines: Iterator[tuple[int, str | Reject]]) -> None:
        self._lines = lines
        self._waiting: deque[tuple[int, str | Reject]] = deque()
        self._taken: list[tuple[int, str | Reject]] = []
        self._size = 0

    def first(self) -> tuple[int, str | Reject] | None:
        """Begins a record: the line that comes next, which stays to be read."""
        self._taken, self._size = [], 0
        if not self._waiting:
            self._waiting.extend([line] if (line := next(self._lines, None)) else [])
        return self._waiting[0] if self._waiting else None

    def give_back(self) -> None:
        """All lines of the record but the first are to be read again."""
        self._waiting.extendleft(reversed(self._taken[1:]))

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        if len(self._taken) == MAX_RECORD_LINES or self._size > MAX_LINE_BYTES:
            raise StopIteration  # which the parser takes for an open quote at the end
        line = self._waiting.popleft() if self._waiting else next(self._lines)
        self._taken.append(line)
        if isinstance(line[1], Reject):
            raise StopIteration
        self._size += len(line[1])
        return line[1] + "\n"


def csv_records(path: str, delimiter: str = ",") -> Iterator[tuple[int, list[str] | Reject]]:
    """First line and fields of every record; `"` quotes, and is doubled within quotes.

    Blank lines are records without fields. Where quotes do not fit (open, or followed by text),
    only the first line is rejected, as `bad CSV`, and reading goes on at the next line; a record
    has at most 1,000 lines and about 4 MB. Other reasons: those of `text_lines`.
    """
    csv.field_size_limit(2 * MAX_LINE_BYTES)  # of the whole process; ours is the stricter one
    feed = _Feed(text_lines(path))
    while (line := feed.first()) is not None:
        number, text = line
        if isinstance(text, Reject):
            next(feed, None)
            yield number, text
            continue
        try:
            # A parser of its own: after an error nothing of the record before is left in it.
            yield number, next(csv.reader(feed, delimiter=delimiter, strict=True))
        except csv.Error as error:
            feed.give_back()
            yield number, Reject(number, "bad CSV", str(error))
