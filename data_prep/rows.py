"""What a source's reader yields: rows, and an account of every entry that did not become one."""

import dataclasses
from collections.abc import Iterator
from typing import Protocol


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One picture and its captions as the source states them, before anything is fetched.

    Attributes:
      line: place in its input, from 1: the line, row or entry a person would look for.
      captions: texts as found, at least one; not yet normalised or filtered.
      image: a path relative to the root, or an http(s) URL; empty with `image_bytes`.
      image_id: unique within the source; empty takes `image`, or input and line.
      image_bytes: contents of the image file, for inputs that carry them.
      split: `train`, `validation` or empty (by a hash of the picture).
      source: name kept in the record; empty takes the name of the whole source.
      url: where the picture was found, when that is not `image`.
      license: as the source states it.
      original_captions: what the captions were translated from, if they were.
      translator: who or what translated them.
      entries: entries of the input that this row stands for (COCO has one per caption).
    """

    line: int
    captions: tuple[str, ...]
    image: str = ""
    image_id: str = ""
    image_bytes: bytes = b""
    split: str = ""
    source: str = ""
    url: str = ""
    license: str = ""
    original_captions: tuple[str, ...] = ()
    translator: str = ""
    entries: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Reject:
    """One entry that cannot be used.

    Attributes:
      line: as in `Row`.
      reason: one of a few fixed phrases, by which rejects are counted.
      detail: what was found there, for a person to read; cut to 500 characters when written.
      entries: entries of the input that it stands for.
    """

    line: int
    reason: str
    detail: str = ""
    entries: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Skip:
    """Entries that were not asked for (another language, ...): counted, not kept.

    Attributes:
      reason: a fixed phrase (`other language`).
      entries: how many.
    """

    reason: str
    entries: int = 1


Item = Row | Reject | Skip


class Source(Protocol):
    """A raw source: frozen, picklable, its fields are the flags of its command.

    Σ entries of the items of an input = entries of that input.
    """

    @property
    def name(self) -> str:
        """Default name of the source of records (`wit`, ...)."""
        ...

    def inputs(self) -> list[str]:
        """Files (or other parts) that can be read on their own, in a fixed order.

        Raises:
          ConfigError: nothing there.
        """
        ...

    def read(self, path: str) -> Iterator[Item]:
        """Streams one input in constant memory; bad content is yielded, never raised."""
        ...
