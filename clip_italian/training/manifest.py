"""SHA-256 of every file of a checkpoint, since Orbax restores flipped bits without a word.

`sha256.json` is written into a step's folder before that counts as a checkpoint: one that is there
at all has it.
"""

import errno
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from clip_italian.training import files

NAME = "sha256.json"
# Orbax writes these at the commit, afterwards; nothing of the state is in them.
UNSEALED = {NAME, "_CHECKPOINT_METADATA", "commit_success.txt"}
_CHUNK, _SMALL = 2**22, 2**16


def write(folder: epath.Path) -> None:
    """Seals the files of a folder. `hashlib` lets other threads run meanwhile."""
    names = sorted(set(names_of(folder)) - UNSEALED)
    text = json.dumps({"files": dict(zip(names, _seals(folder, names), strict=True))}, indent=1)
    files.write(folder / NAME, text + "\n")


def read(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """{relative name: {"bytes", "sha256"}} as sealed.

    Raises:
      FileNotFoundError: nothing was sealed.
      ValueError: the manifest is no manifest.
    """
    try:
        sealed = json.loads((folder / NAME).read_text())["files"]
        return {name: {"bytes": s["bytes"], "sha256": s["sha256"]} for name, s in sealed.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{NAME} cannot be read: {error}") from error


def problems(
    folder: epath.Path, *, quick: bool = False, tell: Callable[[int], Any] = lambda size: None
) -> list[str]:
    """What is wrong with the files of a sealed folder, a line each; empty where nothing is.

    Files that nobody sealed are no problem: they are never read.

    Args:
      folder: of one step.
      quick: look at the sizes of all files, and into those below 64 KiB only.
      tell: takes the sizes (bytes) of what has been read, file by file.
    """
    try:
        sealed = read(folder)
    except FileNotFoundError:
        return [f"{NAME} is missing"]
    except ValueError as error:
        return [str(error)]

    def problem(name: str) -> str:
        said = sealed[name]
        try:
            size = (folder / name).stat().length
            if size != said["bytes"]:
                return f"{name} has {size:,} bytes, not {said['bytes']:,}"
            same = (quick and size > _SMALL) or _seal(folder / name) == said
            tell(size)
            return "" if same else f"{name} has other contents than were saved"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            if error.errno != errno.EIO:  # a network that is down says nothing of the files
                raise
            return f"{name} cannot be read: {error}"

    with ThreadPoolExecutor(4) as threads:
        return [line for line in threads.map(problem, sealed) if line]


def names_of(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    """Names of all files below a folder, relative to it."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from names_of(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name


def _seals(folder: epath.Path, names: Iterable[str]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(lambda name: _seal(folder / name), names))


def _seal(path: epath.Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}
