"""Pictures → rows of an index: each is read once, and checked, shrunk and embedded on the way."""

import dataclasses
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from clip_italian.config import ConfigError
from clip_italian.demo.parts import Facts, Rows
from clip_italian.demo.sources import Pictures
from clip_italian.demo.storage import Rejected
from clip_italian.demo.thumbnails import Picture, check
from clip_italian.evaluation.cache import fault
from clip_italian.evaluation.encoders import Encoder

UNREADABLE = "cannot be read"
_UNKNOWN = "unknown to the model's decoder"


def embed(
    encoder: Encoder, pictures: Pictures, numbers: Sequence[int], tell: Callable[[int], object]
) -> tuple[Rows | None, list[Rejected]]:
    """Embeds some pictures.

    Args:
      encoder: the model.
      pictures: from which.
      numbers: which of them.
      tell: takes how many more have been read.

    Returns:
      The rows of those that can be used, in order (None if none can), and the others.

    Raises:
      ValueError: the encoder gives other than finite rows of length 1.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        reader = _Reader(pictures, threads, tell)
        embeds = _encode(encoder, reader, list(numbers))
    facts = facts_of(pictures, list(embeds), [reader.good[number].sha256 for number in embeds])
    rejected = [
        Rejected(pictures.keys[number], pictures.stamps[number], reader.bad[number])
        for number in numbers
        if number in reader.bad
    ]
    if not embeds:
        return None, rejected
    rows = np.stack(list(embeds.values()))
    wrong = fault(rows, len(embeds), None)
    if wrong:
        raise ValueError(f"{encoder.name}: pictures from {facts.keys[0]!r} on: {wrong}")
    return Rows(facts, rows, [reader.good[number].thumbnail for number in embeds]), rejected


def facts_of(pictures: Pictures, numbers: Sequence[int], sums: Sequence[str]) -> Facts:
    """What an index keeps of pictures whose files have these sha256."""
    return Facts(
        keys=[pictures.keys[number] for number in numbers],
        stamps=[pictures.stamps[number] for number in numbers],
        sha256=list(sums),
        captions=[list(pictures.captions[number]) for number in numbers],
    )


class _Reader:
    """Gives an encoder its pictures, and keeps what else is wanted of them."""

    def __init__(
        self, pictures: Pictures, threads: ThreadPoolExecutor, tell: Callable[[int], object]
    ) -> None:
        self._pictures, self._threads, self._tell = pictures, threads, tell
        self.good: dict[int, Picture] = {}
        self.bad: dict[int, str] = {}

    def name(self, number: int) -> str:
        return self._pictures.keys[number]

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        self._tell(len(set(numbers) - self.good.keys() - self.bad.keys()))
        given = []
        for number, found in zip(numbers, self._threads.map(self._look, numbers), strict=True):
            if isinstance(found, str):
                self.bad[number] = found
                given.append(_BLANK)  # it keeps its place: an encoder encodes every row
            else:
                given.append(found.data)
                # Not the file itself: those of one part may be gigabytes.
                self.good[number] = dataclasses.replace(found, data=b"")
        return given

    def _look(self, number: int) -> Picture | str:
        try:
            data = self._pictures.read(number)
        except Exception:  # records have errors of their own kinds
            return UNREADABLE
        return check(data)


def _encode(encoder: Encoder, reader: _Reader, numbers: list[int]) -> dict[int, np.ndarray]:
    """The vector of each picture that can be used, in order."""
    names = [reader.name(number) for number in numbers]
    try:
        rows = encoder.encode_images(lambda some: reader.read([numbers[i] for i in some]), names)
    except ConfigError:  # one that Pillow decodes and the encoder does not: which one?
        if len(numbers) == 1:
            reader.good.pop(numbers[0], None)
            reader.bad[numbers[0]] = _UNKNOWN
            return {}
        half = len(numbers) // 2
        first = _encode(encoder, reader, numbers[:half])
        return first | _encode(encoder, reader, numbers[half:])
    good = [place for place, number in enumerate(numbers) if number in reader.good]
    return {numbers[place]: rows[place] for place in good}


def _blank() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(file, "PNG")
    return file.getvalue()


_BLANK = _blank()
