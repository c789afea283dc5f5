"""`clip-italian index`: flags → an index of pictures."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from clip_italian.config import ConfigError
from clip_italian.demo import building, index
from clip_italian.demo.options import IndexOptions
from clip_italian.demo.sources import OpenRecords, open_pictures
from clip_italian.evaluation.commands import parse
from clip_italian.evaluation.encoders import Encoder
from clip_italian.evaluation.folders import file_name


@dataclasses.dataclass(frozen=True)
class Rooms:
    """What other rooms give to an index; `cli.py` joins them.

    Attributes:
      open_run: (path, tokenizer, batch_size) → encoder of a run, an export or a hub id.
      open_records: (data_dir, source, split) → collection.
    """

    open_run: Callable[[str, str, int], Encoder]
    open_records: OpenRecords


def run(words: Sequence[str], rooms: Rooms) -> str:
    """Runs `clip-italian index`; returns what to print.

    Raises:
      ConfigError: a flag cannot be used, the index is of another model or damaged, or cannot be
        written.
    """
    flags: IndexOptions = parse(IndexOptions, words, "index")
    if flags.batch_size < 1:
        raise ConfigError(f"batch_size = {flags.batch_size} is not allowed; give 1 or more")
    if not 0 < flags.least_recall <= 1:
        raise ConfigError(f"least_recall = {flags.least_recall} is not allowed; give 0 to 1")
    if flags.verify and flags.index_dir:
        return index.verify(flags.index_dir)
    encoder = rooms.open_run(flags.model, flags.tokenizer, flags.batch_size)
    folder = flags.index_dir or default_folder(flags.model, flags.images, encoder.fingerprint)
    if flags.verify:
        return index.verify(folder)
    pictures = open_pictures(flags.images, rooms.open_records)
    lines = [building.update_index(folder, pictures, encoder).text()]
    if flags.approximate:
        from clip_italian.demo import approximate  # needs faiss

        lines.append(approximate.build_approximate(folder, encoder, flags.least_recall))
    return "\n".join([*lines, f"index: {folder}"])


def default_folder(model: str, images: str, fingerprint: str) -> str:
    """Where the index of these pictures by this model lies if no folder is named.

    The fingerprint is in it: a run that has been trained further gets an index of its own.
    """
    return str(Path("indexes", f"{file_name(model)}-{file_name(images)}-{fingerprint[:8]}"))
