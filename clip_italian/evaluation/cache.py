"""Embeddings on disk: a data set is encoded once by each model.

They are kept in chunks, each written whole or not at all, so that a run that is stopped goes on
with the next chunk. What a chunk belongs to is in its folder's name: a hash over the fingerprints
of model and data.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clip_italian.collection import Collection
from clip_italian.config import ConfigError
from clip_italian.evaluation.encoders import Encoder, digest

FORMAT_VERSION = 1
CHUNK = 2048  # rows of every chunk but the last
_LENGTH_ERROR = 1e-3  # how far from 1 a row's length may be
_log = logging.getLogger(__name__)


def image_embeds(encoder: Encoder, collection: Collection, cache_dir: str) -> np.ndarray:
    """All images of a collection: float32 [images, dim], rows of length 1.

    Args:
      encoder: the model.
      collection: what to encode.
      cache_dir: folder of all embeddings; empty keeps none.

    Raises:
      ConfigError: the folder cannot be written, or an image cannot be decoded.
      ValueError: there is no image, or the encoder gives other than finite rows of length 1.
    """
    # By the images alone, where they are known: another caption file shares them.
    data = digest({}, list(collection.checksums)) if collection.checksums else ""
    folder = _folder(cache_dir, "images", encoder, data or collection.fingerprint)
    title = f"{encoder.name}: images of {collection.name}"
    with _bar(title, len(collection), "image") as bar:

        def encode(start: int, stop: int) -> np.ndarray:
            def read(numbers: np.ndarray) -> list[bytes]:
                bar.update(len(numbers))
                return collection.read(numbers + start)

            return encoder.encode_images(read, collection.image_keys[start:stop])

        return _gather(encode, len(collection), folder, bar)


def text_embeds(encoder: Encoder, texts: Sequence[str], cache_dir: str) -> np.ndarray:
    """Texts in order: float32 [texts, dim], rows of length 1; equal texts are encoded once.

    Args:
      encoder: the model.
      texts: what to encode.
      cache_dir: as in `image_embeds`, which also says what is raised.
    """
    unique = list(dict.fromkeys(texts))
    folder = _folder(cache_dir, "texts", encoder, digest({}, unique))
    with _bar(f"{encoder.name}: texts", len(unique), "text") as bar:

        def encode(start: int, stop: int) -> np.ndarray:
            embeds = encoder.encode_texts(unique[start:stop])
            bar.update(stop - start)
            return embeds

        rows = _gather(encode, len(unique), folder, bar)
    place = {text: row for row, text in enumerate(unique)}
    return rows[[place[text] for text in texts]]


def _bar(title: str, total: int, unit: str) -> tqdm:
    # Delayed, so that what is read from disk shows none.
    return tqdm(total=total, desc=title, unit=unit, delay=0.5, dynamic_ncols=True)


def _folder(cache_dir: str, title: str, encoder: Encoder, data: str) -> Path | None:
    if not cache_dir:
        return None
    key = digest({}, [FORMAT_VERSION, CHUNK, title, encoder.fingerprint, data])
    return Path(cache_dir).expanduser() / f"{title}-{key[:32]}"


def _gather(
    encode: Callable[[int, int], np.ndarray], count: int, folder: Path | None, bar: tqdm
) -> np.ndarray:
    """All rows, chunk by chunk: from disk where they are, else from `encode(start, stop)`."""
    if not count:
        raise ValueError("nothing to encode: neither an image nor a text")
    rows: np.ndarray | None = None
    for number, start in enumerate(range(0, count, CHUNK)):
        stop = min(start + CHUNK, count)
        dim = None if rows is None else rows.shape[1]
        path = None if folder is None else folder / f"{number:06}.npy"
        chunk = None if path is None else _read(path, stop - start, dim)
        if chunk is not None:
            bar.update(stop - start)
        else:
            chunk = np.asarray(encode(start, stop), np.float32)
            wrong = fault(chunk, stop - start, dim)
            if wrong:
                raise ValueError(f"embeddings {start} to {stop}: {wrong}")
            if path is not None:
                _write(path, chunk)
        if rows is None:
            rows = np.empty((count, chunk.shape[1]), np.float32)
        rows[start:stop] = chunk
    assert rows is not None
    return rows


def fault(chunk: np.ndarray, count: int, dim: int | None) -> str:
    """What is wrong with embeddings, or nothing.

    Args:
      chunk: to be float32 [count, dim], finite, rows of length 1.
      count: how many rows there must be.
      dim: their width; None allows any.
    """
    if chunk.dtype != np.float32 or chunk.ndim != 2 or len(chunk) != count:
        return f"{chunk.dtype} {chunk.shape}, not float32 ({count}, dim)"
    if dim not in (None, chunk.shape[1]):
        return f"{chunk.shape[1]} dimensions, {dim} before"
    lengths = np.sqrt(np.square(chunk, dtype=np.float64).sum(axis=1))
    # Written so that a row with NaN fails.
    bad = np.flatnonzero(~(np.abs(lengths - 1) <= _LENGTH_ERROR))
    return f"row {bad[0]} has length {lengths[bad[0]]}, not 1" if bad.size else ""


def _read(path: Path, count: int, dim: int | None) -> np.ndarray | None:
    """A chunk that is there and sound, else None."""
    try:
        # Mapped, so that a header that claims too much takes no memory; it reads no pickles.
        chunk = np.lib.format.open_memmap(path, mode="r")
        with np.errstate(invalid="ignore"):
            wrong = fault(chunk, count, dim)
    except FileNotFoundError:
        return None
    except Exception as error:  # numpy raises many kinds at a header that is no header
        wrong = repr(error)
    if wrong:
        _log.warning("%s is damaged (%s); its rows are encoded again", path, wrong)
        return None
    return chunk


def _write(path: Path, chunk: np.ndarray) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")  # another process may write it too
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, chunk, allow_pickle=False)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ConfigError(
            f"cache_dir: {path} cannot be written ({error}); name another folder, or none"
        ) from error
