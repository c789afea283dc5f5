"""What an index of pictures is on disk: a manifest, and parts that are written whole or not at all.

    manifest.json           what belongs to the index; replaced at once after each part
    part-*.safetensors      some rows each, see `parts`
    approximate-*.faiss     an approximate index over all rows, where there is one

Files are named after their contents, so that none is ever overwritten by another.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from clip_italian.config import ConfigError

FORMAT_VERSION = 1
MANIFEST, LOCK = "manifest.json", "update.lock"
_KIND = "clip_italian picture index"
_DATA = re.compile(r"part-[0-9a-f]{32}\.safetensors|approximate-[0-9a-f]{32}\.faiss")
_OWN = re.compile(rf"\.(manifest|part|approximate)\.[0-9]+\.tmp|{re.escape(LOCK)}|{_DATA.pattern}")


@dataclasses.dataclass(frozen=True)
class File:
    """A file of the index and what it must be: its size in bytes, its sha256 (hex), its rows."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A picture that is not in the index: its key, its stamp then, and why not."""

    key: str
    stamp: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Approximate(File):
    """An approximate index over all rows, in their order.

    Attributes:
      kind: "hnsw" or "ivf".
      effort: efSearch or nprobe, what a search looks at.
      recall_pictures: recall@10 against exact search, of pictures of the index as queries.
      recall_texts: likewise, of texts.
      exact_ms: median time of one exact search, milliseconds, where the index was built.
      approximate_ms: likewise of an approximate one.
    """

    kind: str
    effort: int
    recall_pictures: float
    recall_texts: float
    exact_ms: float
    approximate_ms: float


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What belongs to an index.

    Attributes:
      model: name of the model, for people.
      fingerprint: of the model, see `evaluation.encoders.Encoder`.
      dim: width of the embeddings; 0 while there is none.
      pictures: where they came from, for people.
      parts: in the order of the rows.
      rejected: pictures that are not retried until their stamp changes.
      approximate: or None.
    """

    model: str
    fingerprint: str
    dim: int
    pictures: str
    parts: tuple[File, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    approximate: Approximate | None = None


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where it holds none and nothing else of anybody's.

    Raises:
      ConfigError: the folder holds something else, a newer format, or a damaged manifest.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_bytes())
        assert found["kind"] == _KIND
        version = int(found.get("format_version", 0))
    except FileNotFoundError:
        strange = [name for name in _names(folder) if not _OWN.fullmatch(name)]
        if strange:
            raise ConfigError(
                f"{folder} is no index of pictures and holds other files ({strange[0]!r}); "
                "name a new folder"
            ) from None
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error})") from error
    except (ValueError, KeyError, TypeError, AssertionError):
        raise ConfigError(
            f"{path} is no manifest of an index of pictures, or damaged; name another folder"
        ) from None
    if version > FORMAT_VERSION:
        raise ConfigError(
            f"{folder} was written by a newer version (index format {version}, this one "
            f"reads up to {FORMAT_VERSION}); upgrade to read it"
        )
    try:
        return _manifest(found)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); build the index again") from error


def _manifest(found: dict[str, Any]) -> Manifest:
    near = found["approximate"]
    made = Manifest(
        **found["model"],
        pictures=found["pictures"],
        parts=tuple(File(**one) for one in found["parts"]),
        rejected=tuple(Rejected(**one) for one in found["rejected"]),
        approximate=None if near is None else Approximate(**near),
    )
    for one in (*made.parts, *([made.approximate] if made.approximate else [])):
        if not _DATA.fullmatch(one.file):  # it may come from a stranger, and be a path
            raise ValueError(f"file {one.file!r}")
        if not (isinstance(one.rows, int) and isinstance(one.bytes, int)):
            raise TypeError(f"rows {one.rows!r}, bytes {one.bytes!r}")
    if not isinstance(made.dim, int):
        raise TypeError(f"dim {made.dim!r}")
    return made


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replaces the manifest at once. Raises `ConfigError` where the disk refuses."""
    found = dataclasses.asdict(manifest)
    model = {name: found.pop(name) for name in ("model", "fingerprint", "dim")}
    found = {"kind": _KIND, "format_version": FORMAT_VERSION, "model": model, **found}
    text = json.dumps(found, indent=1)  # ASCII, for names of files need not be UTF-8
    _write(folder, "manifest", lambda path: path.write_text(text, "utf-8"), lambda file: MANIFEST)


def write_data(folder: Path, kind: str, rows: int, write: Callable[[Path], Any]) -> File:
    """Writes a file whole, and tells what the manifest is to say of it.

    Args:
      folder: of the index.
      kind: "part" or "approximate".
      rows: how many rows it is of.
      write: takes the path to write to.

    Raises:
      ConfigError: the disk is full or refuses; nothing is left behind.
    """
    suffix = "safetensors" if kind == "part" else "faiss"
    return _write(folder, kind, write, lambda sha256: f"{kind}-{sha256[:32]}.{suffix}", rows)


def _write(
    folder: Path,
    kind: str,
    write: Callable[[Path], Any],
    name: Callable[[str], str],
    rows: int = 0,
) -> File:
    """Writes beside the place, and moves there what is on the disk to the last byte."""
    temporary = folder / f".{kind}.{os.getpid()}.tmp"
    try:
        write(temporary)
        with temporary.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        os.replace(temporary, folder / name(sha256))
        place = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)
    except (OSError, RuntimeError) as error:  # faiss raises the latter
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ConfigError(
            f"{folder}: the next {kind} cannot be written ({error}); what the index held before is "
            "intact: make room or get permission, then run the same command again"
        ) from error
    return File(name(sha256), rows, size, sha256)


def check_size(path: Path, said: File) -> None:
    """Raises `ConfigError` where a file is missing or not as long as the manifest says."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    if size != said.bytes:
        raise damaged(path, f"{size:,} bytes, not {said.bytes:,}")


def check_sum(path: Path, said: File) -> None:
    """Raises `ConfigError` where a file has not the size and sha256 that the manifest says."""
    check_size(path, said)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != said.sha256:
            raise damaged(path, "other contents than were written")


def damaged(path: Path, what: str) -> ConfigError:
    """The error of a file that cannot be used."""
    return ConfigError(
        f"{path} is damaged: {what}; delete the folder {path.parent} and build it again with "
        "`clip-italian index`"
    )


def remove_leftovers(folder: Path, manifest: Manifest) -> None:
    """Deletes temporary files and parts that are not in the manifest; no file of anybody else's."""
    named: Sequence[File] = [*manifest.parts, *filter(None, [manifest.approximate])]
    keep = {one.file for one in named} | {LOCK}
    for name in _names(folder):
        if _OWN.fullmatch(name) and name not in keep:
            (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def updating(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which is made; the system lets go of it when a process dies.

    Raises:
      ConfigError: another process updates it, or the folder cannot be written.
    """
    lock = filelock.FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ConfigError(f"{folder} is being updated by another process; wait for it") from None
    except (OSError, NotImplementedError) as error:
        raise ConfigError(f"{folder} cannot be written or locked ({error})") from error
    try:
        yield
    finally:
        lock.release()


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []
