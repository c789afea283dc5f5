"""Sources of a run: opened for random access, remote ones copied to this host first."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath
from tqdm import tqdm

from clip_italian.config import ConfigError, DataConfig
from clip_italian.data import derived
from clip_italian.data.records import INDEX_FILE, open_split
from clip_italian.data.shards import RecordFile

_CHUNK = 8 << 20


def open_sources(data: DataConfig, split: str) -> list[RecordFile]:
    """Opens one split of every source, in the order of `data.sources`; copies remote ones.

    Raises:
      ConfigError: an unknown source or an empty split (field `sources`), no room for a copy
        (field `data_cache`).
    """
    return [open_split(local_data_dir(data, source), source, split) for source in data.sources]


def data_fingerprint(sources: Sequence[RecordFile]) -> str:
    """sha256 (hex) over the contents of all sources, in their order."""
    text = json.dumps([[file.source, file.split, file.fingerprint] for file in sources])
    return hashlib.sha256(text.encode()).hexdigest()


def local_data_dir(data: DataConfig, source: str) -> Path:
    """Folder that holds `source` on this host: `data_dir`, or a copy if that is remote (`://`).

    Random access needs a local disk: a remote shard would cost a request per image. A copy is
    kept under its fingerprint, so that new contents never mix with old ones, and a broken-off
    copy goes on with the first shard that is missing.

    Raises:
      ConfigError: no such source, no room for it, or a shard that arrives changed.
    """
    if "://" not in data.data_dir:
        return Path(data.data_dir)
    remote = epath.Path(data.data_dir) / source
    if not (remote / INDEX_FILE).exists():
        found = (
            sorted(path.name for path in remote.parent.iterdir()) if remote.parent.exists() else []
        )
        raise ConfigError(
            f"sources: no records of {source!r} in {data.data_dir} (found there: {found}); "
            "correct sources or data_dir"
        )
    text = (remote / INDEX_FILE).read_text()
    index = json.loads(text)
    data_dir = Path(data.data_cache).expanduser() / index["fingerprint"][:16]
    folder = data_dir / source
    if not (folder / INDEX_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with derived.locked(folder):  # another process on this disk may be copying
            _copy_shards(remote, folder, [s for shards in index["shards"].values() for s in shards])
            temporary = folder / f"{INDEX_FILE}.{os.getpid()}"
            temporary.write_text(text)
            temporary.rename(folder / INDEX_FILE)  # last: a folder with an index is complete
    return data_dir


def _copy_shards(remote: Any, folder: Path, shards: Sequence[dict[str, Any]]) -> None:
    missing = [shard for shard in shards if not (folder / shard["file"]).exists()]
    needed, free = sum(shard["bytes"] for shard in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"data_cache: {folder} has {free:,} bytes free, the copy of {remote} needs "
            f"{needed:,}; free some space or name a larger disk"
        )
    logging.info("copying %s to %s", remote, folder)
    with tqdm(total=needed, unit="B", unit_scale=True, desc=f"copying {remote.name}") as progress:
        for shard in missing:
            temporary = folder / f"{shard['file']}.{os.getpid()}"
            checksum = hashlib.sha256()
            with (remote / shard["file"]).open("rb") as source, temporary.open("wb") as copy:
                while chunk := source.read(_CHUNK):
                    copy.write(chunk)
                    checksum.update(chunk)
                    progress.update(len(chunk))
            if checksum.hexdigest() != shard["sha256"]:
                temporary.unlink()
                raise ConfigError(
                    f"data_dir: {remote / shard['file']} is not the shard that {INDEX_FILE} "
                    "lists; copy the source there again"
                )
            temporary.rename(folder / shard["file"])
