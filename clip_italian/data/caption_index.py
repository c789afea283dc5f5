"""Captions of one split as token ids in memory-mapped arrays: what a step needs beside pictures.

Made once from the records, then opened in a time that does not depend on their number. A folder

    first.bin       int64 [records + 1]     first caption of each record
    ends.bin        int64 [captions + 1]    first token of each caption
    tokens.bin      uint16 or int32         ids of all captions, special tokens included
    image_id.bin    int32 [records, 2]      hashes as in `Batch`
    caption_id.bin  int32 [captions, 2]
    index.json      last: format_version, fingerprint, numbers, histogram of lengths

appears whole or not at all.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from clip_italian.batch import TokenGroup
from clip_italian.config import ConfigError
from clip_italian.data import derived
from clip_italian.data.tokens import Tokenizer, pad_ragged, ragged_encoder, tokenizer_fingerprint

if TYPE_CHECKING:  # which needs the extra `data`; a dry run opens an index without
    from clip_italian.data.shards import RecordFile

FORMAT_VERSION = 1
_META = "index.json"
_BLOCK = 1024  # records read and tokenised at once


class CaptionIndex:
    """All captions of one split; vectorised look-ups.

    Attributes:
      fingerprint: sha256 (hex) over records, split, tokenizer and max_length.
      histogram: float64 [max_length + 1]: how often a record shows a caption of so many tokens,
        for captions of one record are shown equally often. It sums to the number of records.
      image_id: int32 [records, 2], see `Batch`.
      caption_id: int32 [captions, 2], likewise.
    """

    def __init__(self, folder: Path, meta: dict[str, Any], tokenizer: Tokenizer) -> None:
        """Use `open_index`."""
        self.fingerprint: str = meta["fingerprint"]
        self.histogram = np.array(meta["histogram"], np.float64)
        self._tokenizer = tokenizer
        arrays = {
            name: np.asarray(np.memmap(folder / f"{name}.bin", dtype, "r", shape=tuple(shape)))
            for name, (dtype, shape) in meta["arrays"].items()
        }
        self._first, self._ends, self._tokens = (arrays[n] for n in ("first", "ends", "tokens"))
        self.image_id, self.caption_id = arrays["image_id"], arrays["caption_id"]

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.caption_id)

    def choose(self, records: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Caption of each record (int64 [n]) that a random word (int64 [n], 0 or more) says."""
        first = self._first[records]
        return first + words % (self._first[records + 1] - first)

    def lengths(self, captions: np.ndarray) -> np.ndarray:
        """Tokens of each caption (int64 [n]): int64 [n]."""
        return self._ends[captions + 1] - self._ends[captions]

    def tokens(self, captions: np.ndarray, width: int) -> TokenGroup:
        """Token ids of these captions, none longer than `width`: int32 [n, width]."""
        starts = self._ends[captions]
        lengths = self._ends[captions + 1] - starts
        return pad_ragged(self._tokens, starts, lengths, width, self._tokenizer)


def open_index(
    records: Path,
    split: str,
    data_fingerprint: str,
    tokenizer: Tokenizer,
    max_length: int,
    data_cache: str,
) -> CaptionIndex | None:
    """The index of a split, or None if there is none yet.

    Args:
      records: folder of the source.
      split: name of the split.
      data_fingerprint: of the source.
      tokenizer: the text tower's.
      max_length: tokens at which captions are cut.
      data_cache: where the index is if `records` could not be written.
    """
    print_ = _fingerprint(split, data_fingerprint, tokenizer, max_length)
    for folder in derived.places(records, data_cache, _name(split, print_)):
        meta = _whole(folder)
        if meta is not None:
            return CaptionIndex(folder, meta, tokenizer)
    return None


def open_or_build(
    file: "RecordFile", tokenizer: Tokenizer, max_length: int, data_cache: str
) -> CaptionIndex:
    """The index of a split, made first if there is none; with a progress bar.

    Raises:
      ConfigError: naming `data_cache`, when there is no place for it; naming a record that cannot
        be read, or has no caption.
    """
    facts = (file.folder, file.split, file.fingerprint, tokenizer, max_length, data_cache)
    found = open_index(*facts)
    if found is None:
        print_ = _fingerprint(file.split, file.fingerprint, tokenizer, max_length)
        target = derived.writable_place(file.folder, data_cache, _name(file.split, print_))
        with derived.locked(target):
            found = open_index(*facts)  # another process may have made it meanwhile
            if found is None:
                _build(file, tokenizer, max_length, print_, target)
                found = open_index(*facts)
    assert found is not None
    return found


def _fingerprint(split: str, data: str, tokenizer: Tokenizer, max_length: int) -> str:
    facts = [FORMAT_VERSION, split, data, tokenizer_fingerprint(tokenizer), max_length]
    return derived.fingerprint(["caption index", *facts])


def _name(split: str, fingerprint: str) -> str:
    return f"captions-{split}-{fingerprint[:16]}"


def _whole(folder: Path) -> dict[str, Any] | None:
    """`index.json` of a folder whose files have the sizes it says, else None."""
    try:
        meta = json.loads((folder / _META).read_text())
        for name, (dtype, shape) in meta["arrays"].items():
            expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
            found = (folder / f"{name}.bin").stat().st_size
            if found != expected:
                logging.warning("%s has %d bytes, not %d: made anew", folder, found, expected)
                return None
    except (OSError, ValueError, KeyError):
        return None
    return meta


def _build(
    file: "RecordFile", tokenizer: Tokenizer, max_length: int, fingerprint: str, target: Path
) -> None:
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        meta = _write(staged, file, tokenizer, max_length)
        meta = {"format_version": FORMAT_VERSION, "fingerprint": fingerprint, **meta}
        (staged / _META).write_text(json.dumps(meta) + "\n")
        if _whole(target) is not None:
            return  # another process was faster, and may be reading it
        shutil.rmtree(target)  # made empty to see that it can be, or damaged
        os.replace(staged, target)
    except OSError:
        # Another process may have made the same one meanwhile.
        if _whole(target) is None:
            raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _write(
    folder: Path, file: "RecordFile", tokenizer: Tokenizer, max_length: int
) -> dict[str, Any]:
    """Writes the arrays block by block; returns what `index.json` says of them."""
    small = max(tokenizer.get_vocab().values()) < 2**16
    arrays = {
        "first": ("int64", [len(file) + 1]),
        "ends": ("int64", [1]),
        "tokens": ("uint16" if small else "int32", [0]),
        "image_id": ("int32", [len(file), 2]),
        "caption_id": ("int32", [0, 2]),
    }
    histogram = np.zeros(max_length + 1)
    encode = ragged_encoder(tokenizer, max_length)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in arrays}

        def append(name: str, part: np.ndarray) -> None:
            files[name].write(np.ascontiguousarray(part, arrays[name][0]).data)

        append("first", np.zeros(1))
        append("ends", np.zeros(1))
        captions = tokens = 0
        for keys, counts, texts in _captions(file):
            ids, lengths = encode([text.decode() for text in texts])
            append("image_id", _hashes(keys))
            append("caption_id", _hashes(texts))
            append("first", captions + np.cumsum(counts))
            append("ends", tokens + np.cumsum(lengths))
            append("tokens", ids)
            histogram += np.bincount(lengths, np.repeat(1 / counts, counts), max_length + 1)
            captions += len(texts)
            tokens += len(ids)
    for name, rows in (("ends", captions + 1), ("tokens", tokens), ("caption_id", captions)):
        arrays[name][1][0] = rows
    return {"arrays": arrays, "histogram": histogram.tolist()}


def _captions(file: "RecordFile") -> Iterator[tuple[list[bytes], np.ndarray, list[bytes]]]:
    """Blocks of records: keys, numbers of captions, captions; the next one is read meanwhile."""
    starts = range(0, len(file), _BLOCK)
    title = f"indexing captions of {file.source}/{file.split}"
    with (
        ThreadPoolExecutor(1) as pool,
        tqdm(total=len(file), unit=" records", desc=title) as progress,
    ):

        def read(start: int) -> list[tuple[bytes, list[bytes]]]:
            numbers = range(start, min(start + _BLOCK, len(file)))
            try:
                return [_parse(data) for data in file.read(numbers)]
            except Exception as error:  # of the reader, or of the protocol buffer
                raise _naming_it(file, numbers, error) from error

        coming = pool.submit(read, 0)
        for start in starts:
            found = coming.result()
            if start + _BLOCK < len(file):
                coming = pool.submit(read, start + _BLOCK)
            counts = np.array([len(captions) for _, captions in found])
            yield [key for key, _ in found], counts, [text for _, texts in found for text in texts]
            progress.update(len(found))


def _parse(data: bytes) -> tuple[bytes, list[bytes]]:
    """Key and captions of a record. Raises an exception, of whatever kind, for what is none."""
    from clip_italian.data.records import record_captions

    key, captions = record_captions(data)
    if not captions:
        raise ValueError("it has no caption")
    for caption in captions:
        caption.decode()
    return key, captions


def _naming_it(file: "RecordFile", numbers: Sequence[int], error: Exception) -> Exception:
    """Which of these records cannot be read, as an error for the person; or the error itself.

    Nothing may stand in its place: the lengths of captions decide the shapes of batches, and hosts
    whose copies differ would wait for each other for ever.
    """
    for number in numbers:
        try:
            _parse(file.read([number])[0])
        except Exception as own:
            return ConfigError(
                f"sources: record {number} of {file.source}/{file.split}, in "
                f"{file.shard_of(number)}, cannot be read, so its captions are not known: "
                f"{str(own) or repr(own)}; prepare or copy the source again"
            )
    return error


def _hashes(values: list[bytes]) -> np.ndarray:
    from clip_italian.data.records import hash_words

    return np.array([hash_words(value) for value in values], np.int32)
