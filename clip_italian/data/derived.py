"""Where files made from records lie: caption indexes and cached features."""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip_italian.config import ConfigError


def fingerprint(facts: Any) -> str:
    """sha256 (hex) over facts that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def places(records: Path, data_cache: str, name: str) -> tuple[Path, Path]:
    """Where a folder `name` made from the source in `records` may lie: beside it, or cached."""
    beside, cache = Path("derived", name), Path("derived", records.name, name)
    return records / beside, Path(data_cache).expanduser() / cache


def writable_place(records: Path, data_cache: str, name: str) -> Path:
    """The first of `places` that can be written, made with its parents.

    Raises:
      ConfigError: naming `data_cache`, when neither can.
    """
    *_, last = found = places(records, data_cache, name)
    for folder in found:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            if folder == last:
                raise ConfigError(
                    f"data_cache: neither {found[0]} nor {last} can be written ({error}); "
                    "name a folder of your own"
                ) from error
    raise AssertionError("unreachable")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until no other process on this disk makes a folder beside this one."""
    parent = os.open(folder.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a disk without locks: who is last has worked in vain
            fcntl.flock(parent, fcntl.LOCK_EX)
        yield
    finally:
        os.close(parent)
