"""Reading an index of pictures: search, thumbnails, captions."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from clip_italian.config import ConfigError
from clip_italian.demo import exact as exactly
from clip_italian.demo import parts, storage

_T = TypeVar("_T")


class Index:
    """An opened index; may be used from several threads.

    Attributes:
      keys: what the source calls each picture, [n], in the order of the rows.
      captions: those of each picture, [n]; may be empty.
      image_embeds: float32 [n, dim], rows of length 1.
      model_name: of the model that made them, for people.
      pictures: where they came from, for people.
      approximate: what is known of the approximate index, or None.
    """

    def __init__(self, folder: Path, manifest: storage.Manifest) -> None:
        """Use `open_index`."""
        self._folder = folder
        self.model_name, self.pictures = manifest.model, manifest.pictures
        self.approximate = manifest.approximate
        self.keys: list[str] = []
        self.captions: list[list[str]] = []
        self.image_embeds = np.empty((sum(p.rows for p in manifest.parts), manifest.dim), "float32")
        self._thumbnails: list[tuple[np.ndarray, Any]] = []
        self._starts: list[int] = []
        for part in manifest.parts:
            file, facts = parts.open_part(folder, part, manifest.dim)
            start = len(self.keys)
            self._starts.append(start)
            self.image_embeds[start : start + part.rows] = file.get_tensor("image_embeds")
            self._thumbnails.append((file.get_tensor("offsets"), file.get_slice("thumbnails")))
            self.keys += facts.keys
            self.captions += facts.captions

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.keys)

    def thumbnail(self, row: int) -> bytes:
        """JPEG of one picture, shorter side at most 256 pixels; read from disk when asked for."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        offsets, thumbnails = self._thumbnails[part]
        place = row - self._starts[part]
        return thumbnails[int(offsets[place]) : int(offsets[place + 1])].tobytes()

    def search(
        self, query: np.ndarray, k: int, exact: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """The pictures nearest to a query by inner product.

        Args:
          query: float32 [dim].
          k: how many to find.
          exact: look at every picture; else use the approximate index, where there is one.

        Returns:
          Rows int64 [≤ k] and scores float32 [≤ k], best first; ties by row.

        Raises:
          ConfigError: the approximate index is damaged.
        """
        query = np.asarray(query, np.float32)
        if not len(self):
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        if not exact and self.approximate is not None and k > 0:
            return self._searcher.search(query[None], k)[0]
        return exactly.search(self.image_embeds, query[None], k)[0]

    @functools.cached_property
    def _searcher(self) -> Any:
        from clip_italian.demo import approximate  # needs faiss

        assert self.approximate is not None
        return approximate.read(self._folder, self.approximate, self.image_embeds.shape)


def open_index(folder: str | Path, fingerprint: str = "") -> Index:
    """Opens an index.

    Args:
      folder: where `clip-italian index` wrote it.
      fingerprint: of the model whose queries it will be asked; empty asks no questions.

    Raises:
      ConfigError: there is none, it is of another model, a newer format, or a part is missing or
        has the wrong size.
    """
    folder = Path(folder)

    def opened(manifest: storage.Manifest) -> Index:
        if fingerprint and manifest.fingerprint != fingerprint:
            raise other_model(folder, manifest, fingerprint)
        return Index(folder, manifest)

    return _settled(folder, opened)


def verify(folder: str | Path) -> str:
    """Checks the sha256 of every file of an index; returns what was checked, for people.

    Raises:
      ConfigError: there is no index, or a file is missing or damaged: all of them are named.
    """
    folder = Path(folder)
    return _settled(folder, lambda manifest: _verified(folder, manifest))


def _verified(folder: Path, manifest: storage.Manifest) -> str:
    files: Sequence[storage.File] = [*manifest.parts, *filter(None, [manifest.approximate])]
    wrong = []
    for one in files:
        try:
            storage.check_sum(folder / one.file, one)
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("\n".join(wrong))
    rows, size = sum(part.rows for part in manifest.parts), sum(one.bytes for one in files)
    return f"{folder}: {rows:,} pictures, {len(files)} files, {size:,} bytes: all as written"


def other_model(
    folder: Path, manifest: storage.Manifest, fingerprint: str, name: str = ""
) -> ConfigError:
    """The error of an index that another model made."""
    wanted = f"{name!r} ({fingerprint[:12]})" if name else f"the one asked for ({fingerprint[:12]})"
    return ConfigError(
        f"{folder} is an index of the model {manifest.model!r} ({manifest.fingerprint[:12]}), not "
        f"of {wanted}; build another: clip-italian index --model MODEL --images PICTURES "
        "--index_dir NEW_FOLDER"
    )


def _settled(folder: Path, use: Callable[[storage.Manifest], _T]) -> _T:
    """Uses a manifest; if that fails since an update has replaced parts meanwhile, the new one."""
    manifest = _read(folder)
    while True:
        try:
            return use(manifest)
        except ConfigError:
            before, manifest = manifest, _read(folder)
            if manifest == before:
                raise


def _read(folder: Path) -> storage.Manifest:
    manifest = storage.read_manifest(folder)
    if manifest is None:
        raise ConfigError(
            f"no index of pictures at {str(folder)!r}; make one: clip-italian index --model MODEL "
            f"--images PICTURES --index_dir {folder}"
        )
    return manifest
