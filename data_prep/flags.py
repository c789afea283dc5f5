"""What follows from the flags: checks before the work, and what a step depends on."""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_italian.config import ConfigError
from clip_italian.data.records import INDEX_FILE
from data_prep.filters import TextFilters
from data_prep.options import Steps
from data_prep.rows import Source

# Fields of sources that name files: made absolute, since workers may stand elsewhere.
_PLACES = ("path", "images", "dataset")
# Folders that a reader looks into beside its inputs.
_LOOKED_INTO = ("images", "dataset")


def check_flags(name: str, steps: Steps) -> Path:
    """The work folder; raises `ConfigError` for a field that cannot work."""
    run = steps.run
    remote = "://" in run.out_dir
    target = Path(run.out_dir, name)
    share, bits = steps.decide.validation_share, steps.decide.near_duplicates
    for wrong, message in (
        (
            not re.fullmatch(r"[a-z][a-z0-9_]*", name),
            f"source = {name!r} is not allowed; use lower-case letters, digits and underscores",
        ),
        (
            not Path(run.root).is_dir(),
            f"root = {run.root!r} is no folder; name the one that image paths start from",
        ),
        (run.rows_per_shard < 1, f"rows_per_shard = {run.rows_per_shard}: give 1 or more"),
        (bits not in range(-1, 4), f"near_duplicates = {bits} is not allowed; use -1 to 3"),
        (not 0 <= share <= 1, f"validation_share = {share} is not allowed; use 0 to 1"),
        (
            "://" in run.work_dir or (remote and not run.work_dir),
            f"work_dir = {run.work_dir!r} with out_dir = {run.out_dir!r} is not allowed; "
            "name a local folder with room for all pictures",
        ),
        (
            not remote and _holds_something_else(target),
            f"out_dir: {target} exists and holds no records; name another out_dir or source",
        ),
    ):
        if wrong:
            raise ConfigError(message)
    return Path(run.work_dir or f"{run.out_dir}/.{name}.work").absolute()


def _holds_something_else(target: Path) -> bool:
    if target.is_file():
        return True
    return target.is_dir() and any(target.iterdir()) and not (target / INDEX_FILE).exists()


def first_filters(steps: Steps) -> TextFilters:
    """Before translation, captions are in another language, whose proper nouns no model knows."""
    if not steps.translate.translate:
        return steps.text
    code = re.split("[-_:]", steps.translate.translate)[0].lower()
    language = code if steps.text.caption_language else ""
    return dataclasses.replace(steps.text, caption_language=language, pos_model="")


def language(steps: Steps) -> str:
    """Language of the captions, as far as the flags say."""
    return steps.translate.translate.partition(":")[2] or steps.text.caption_language or "unknown"


def fields(options: Any) -> dict[str, Any]:
    """All fields of a source, or of one part of the steps, by name."""
    return dataclasses.asdict(options)


def flat(steps: Steps) -> dict[str, Any]:
    """All flags by name."""
    return {name: value for part in fields(steps).values() for name, value in part.items()}


def stem(path: str) -> str:
    """Name of the evaluation set in a file of ids."""
    return Path(path).name.partition(".")[0]


def absolute(source: Source) -> Source:
    """The source with absolute places; what is no place here (a hub id) stays."""
    options: Any = source
    changes: dict[str, Any] = {}
    for name in _PLACES:
        value = getattr(options, name, "")
        if isinstance(value, tuple):
            changes[name] = tuple(os.path.abspath(one) for one in value)
        elif value and os.path.exists(value):
            changes[name] = os.path.abspath(value)
    return dataclasses.replace(options, **changes)


def state(paths: Sequence[str]) -> list[Any]:
    """What tells that a file has changed."""
    found = [(path, os.stat(path) if os.path.exists(path) else None) for path in paths]
    return [[path, status and [status.st_size, status.st_mtime_ns]] for path, status in found]


def folders_state(source: Source) -> list[Any]:
    """What tells that files came or went in the folders that the source's reader looks into."""
    places = [getattr(source, name, "") for name in _LOOKED_INTO]
    return [
        [folder, os.stat(folder).st_mtime_ns]
        for place in places
        if place and os.path.isdir(place)
        for folder in sorted(folder for folder, _, _ in os.walk(place))
    ]
