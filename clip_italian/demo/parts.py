"""Parts of an index: some rows each, in one safetensors file.

`image_embeds` float32 [rows, dim]; `thumbnails` uint8 [bytes], JPEG files one after another;
`offsets` int64 [rows + 1] into them; keys, stamps, sha256 and captions of the rows as JSON in the
metadata.
"""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from clip_italian.demo import storage


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of the rows of a part beside pixels; lists of equal length.

    Attributes:
      keys: what the source calls the pictures.
      stamps: change when the picture may have changed.
      sha256: hex, of the picture as found.
      captions: those of each picture; may be empty.
    """

    keys: list[str]
    stamps: list[str]
    sha256: list[str]
    captions: list[list[str]]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The contents of one part: facts, float32 [rows, dim], and JPEG thumbnails."""

    facts: Facts
    image_embeds: np.ndarray
    thumbnails: list[bytes]


def write(folder: Path, rows: Rows) -> storage.File:
    """Writes a part whole; the manifest is not touched. Raises `ConfigError` as `write_data`."""
    sizes = [len(one) for one in rows.thumbnails]
    arrays = {
        "image_embeds": np.ascontiguousarray(rows.image_embeds, np.float32),
        "thumbnails": np.frombuffer(b"".join(rows.thumbnails), np.uint8),
        "offsets": np.cumsum([0, *sizes], dtype=np.int64),
    }
    data = save(arrays, metadata={"rows": json.dumps(dataclasses.asdict(rows.facts))})
    return storage.write_data(folder, "part", len(sizes), lambda path: path.write_bytes(data))


def open_part(folder: Path, part: storage.File, dim: int) -> tuple[Any, Facts]:
    """A part as safetensors' mapped file, safe for several threads, and the facts of its rows.

    Raises:
      ConfigError: it is missing, or has other sizes than the manifest says.
    """
    path = folder / part.file
    storage.check_size(path, part)
    try:
        file: Any = safe_open(path, "numpy")
        facts = Facts(**json.loads(file.metadata()["rows"]))
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        lengths = {len(values) for values in vars(facts).values()}
        if shapes["image_embeds"] != [part.rows, dim] or lengths != {part.rows}:
            raise ValueError(f"{shapes} for {part.rows} rows of {dim}")
        offsets = file.get_tensor("offsets")
        ends = (offsets[0], offsets[-1])
        if len(offsets) != part.rows + 1 or ends != (0, *shapes["thumbnails"]):
            raise ValueError(f"offsets of {len(offsets)} rows from {ends[0]} to {ends[1]}")
        if (np.diff(offsets) <= 0).any():
            raise ValueError("a thumbnail without bytes")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise storage.damaged(path, repr(error)) from error
    return file, facts


def read_rows(folder: Path, part: storage.File, dim: int) -> Rows:
    """All that a part holds. Raises `ConfigError` as `open_part`."""
    file, facts = open_part(folder, part, dim)
    data, offsets = file.get_tensor("thumbnails").tobytes(), file.get_tensor("offsets").tolist()
    thumbnails = [data[a:b] for a, b in itertools.pairwise(offsets)]
    return Rows(facts, file.get_tensor("image_embeds"), thumbnails)
