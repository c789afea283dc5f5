"""Feeds in XML (RSS, Atom, WordPress exports) as named fields, and plain text of HTML.

Feeds come from outside: a document type, with which entities could explode, ends the reading; an
item holds at most a few MB.
"""

import dataclasses
import html
import re
from collections.abc import Iterator
from xml.parsers import expat

from data_prep.lines import MAX_LINE_BYTES, BrokenArchiveError, read_blocks
from data_prep.rows import Reject

ITEMS = frozenset({"item", "entry"})
PICTURE = "image"  # our name for the picture of an item, however the feed tells it
_ENCLOSURES = frozenset({"enclosure", "media:content", "media:thumbnail"})
_ATTACHMENT = "wp:attachment_url"
_TEXTS = ("description", "content:encoded", "summary", "content")
_PICTURE_FILE = re.compile(r"\.(?:jpe?g|png|gif|webp|bmp|tiff?)(?:\?|#|\Z)", re.IGNORECASE)
_MAX_DEPTH = 100
_TAG = re.compile(r"<!--|-->|<[/!?a-zA-Z][^<>]*>")
_HIDDEN = {"<!--": "-->", "<script": "</script", "<style": "</style"}
_BREAK = re.compile(r"</?(?:p|br|div|li|ul|ol|h\d|tr|td|blockquote|figure|figcaption)\b")
_ADDRESS = re.compile(r"""(?<![\w-])src\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)


class _RefusedError(Exception):
    """The feed holds what a feed has no need for."""


@dataclasses.dataclass
class _Item:
    line: int
    depth: int
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    picture: str = ""  # of an enclosure
    size: int = 0  # characters


class _Handler:
    """Collects items from what expat reports."""

    def __init__(self) -> None:
        self._done: list[tuple[int, dict[str, str] | Reject]] = []
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.StartDoctypeDeclHandler = self._doctype
        self._open: list[str] = []  # elements around the place at hand
        self._item: _Item | None = None

    def take(self) -> list[tuple[int, dict[str, str] | Reject]]:
        """The items that are complete, once."""
        done, self._done = self._done, []
        return done

    @property
    def open_line(self) -> int | None:
        """Where the item at hand began, if there is one."""
        return self._item.line if self._item else None

    def _doctype(self, *_: object) -> None:
        raise _RefusedError("document type in XML")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._open.append(name)
        if len(self._open) > _MAX_DEPTH:
            raise _RefusedError("XML too deep")
        item = self._item
        if item is None:
            if name in ITEMS:
                self._item = _Item(self.parser.CurrentLineNumber, len(self._open))
            return
        item.size += len(name)
        linked = name == "link" and attributes.get("rel") == "enclosure"
        if not item.picture and (name in _ENCLOSURES or linked):
            url = attributes.get("url") or attributes.get("href") or ""
            kind = attributes.get("type") or attributes.get("medium") or ""
            if kind.startswith("image") or (not kind and _PICTURE_FILE.search(url)):
                item.picture = url

    def _text(self, text: str) -> None:
        item = self._item
        if item is None or len(self._open) <= item.depth:
            return
        item.size += len(text)
        if item.size <= MAX_LINE_BYTES:
            name = self._open[-1]
            item.fields[name] = item.fields.get(name, "") + text

    def _end(self, name: str) -> None:
        self._open.pop()
        item = self._item
        if item is None or len(self._open) >= item.depth:
            return
        self._item = None
        if item.size > MAX_LINE_BYTES:
            self._done.append((item.line, Reject(item.line, "entry too long")))
        else:
            self._done.append((item.line, _with_picture(item)))


def _with_picture(item: _Item) -> dict[str, str]:
    fields = item.fields
    found = [item.picture, fields.get(PICTURE, ""), fields.get(_ATTACHMENT, "")]
    picture = next((url.strip() for url in found if url.strip()), "")
    for name in _TEXTS:
        picture = picture or plain_text(fields.get(name, ""))[1]
    return fields | {PICTURE: picture}


def feed_items(path: str) -> Iterator[tuple[int, dict[str, str] | Reject]]:
    """Line and fields of each `item` (RSS) or `entry` (Atom) of a feed, gzipped or not.

    Fields are the texts of the elements in it, by their names as written (`dc:creator`); `image`
    is the URL of its picture: an enclosure, `media:content`, the element `image`,
    `wp:attachment_url`, or else the first `<img>` in its texts.

    Reasons: `entry too long` (above 4 MB); as the last item, after which nothing can be read:
    `bad XML`, `document type in XML`, `XML too deep`, `XML tag too long`, `broken archive`.
    """
    handler = _Handler()
    parser, fed = handler.parser, 0
    problem = None
    try:
        for block in read_blocks(path):
            parser.Parse(block, False)
            yield from handler.take()
            fed += len(block)
            if fed - parser.CurrentByteIndex > MAX_LINE_BYTES:  # expat holds an open tag whole
                raise _RefusedError("XML tag too long")
        parser.Parse(b"", True)
    except _RefusedError as error:
        problem = str(error), ""
    except BrokenArchiveError as error:
        problem = "broken archive", str(error)
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: odd encodings
        problem = "bad XML", str(error)
    yield from handler.take()
    if problem:
        line = handler.open_line or parser.CurrentLineNumber
        yield line, Reject(line, *problem)


def plain_text(source: str) -> tuple[str, str]:
    """HTML → its text, and the address of its first picture ("" without one).

    Entities stay as they are, and so does a text without tags. The time is linear in the length
    whatever the text (html.parser takes minutes for 100 KB of "<a ").
    """
    parts: list[str] = []
    picture, hidden, end = "", "", 0  # hidden: what ends the part that is not shown
    for match in _TAG.finditer(source):
        tag = match[0].lower()
        parts.append("" if hidden else source[end : match.start()])
        end = match.end()
        if hidden:
            hidden = "" if tag.startswith(hidden) else hidden
            continue
        hidden = next((_HIDDEN[start] for start in _HIDDEN if tag.startswith(start)), "")
        parts.append(" " if _BREAK.match(tag) else "")
        if not picture and tag.startswith("<img") and (address := _ADDRESS.search(match[0])):
            picture = html.unescape(address[1] or address[2] or address[3] or "")
    if not parts:
        return source, ""
    parts.append("" if hidden else source[end:])
    return "".join(parts).strip(), picture
