"""What lies in a run's folder of checkpoints: steps, metrics, and what is wrong with their files.

Reads only, and without Orbax: a damaged file of metrics would end its manager, and for gs:// it
wants google-cloud-storage.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

from etils import epath

from clip_italian.config import ConfigError
from clip_italian.training import manifest

METRICS = "metrics/metrics"  # as Orbax has it
logger = logging.getLogger(__name__)


def steps(folder: epath.Path) -> list[int]:
    """Steps of the finished checkpoints, in order.

    A finished one is renamed; in a Google bucket, where nothing can be, it is marked.
    """
    bucket = str(folder).startswith("gs://")
    return sorted(
        int(path.name)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name.isdecimal() and (not bucket or (path / "commit_success.txt").exists())
    )


def metrics(folder: epath.Path, step: int) -> dict[str, float]:
    """What a checkpoint was evaluated to; empty where it was not, or where that cannot be read."""
    try:
        found = json.loads((folder / str(step) / METRICS).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def best(folder: epath.Path, metric: str) -> tuple[int, float] | None:
    """(step, value) of the best checkpoint by a metric (higher is better); None if there is none.

    Of equal ones the latest.
    """
    values = [(metrics(folder, step).get(metric), step) for step in steps(folder)]
    scored = [(value, step) for value, step in values if value is not None]
    if not scored:
        return None
    value, step = max(scored)
    return step, value


def has_no_manifest(folder: epath.Path, step: int) -> bool:
    """Whether a checkpoint is of format 1, which had no manifest: it cannot be verified."""
    place = folder / str(step)
    if (place / manifest.NAME).exists():
        return False
    try:
        return json.loads((place / "run" / "metadata").read_text())["format_version"] == 1
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def problems(
    folder: epath.Path,
    step: int,
    *,
    quick: bool = False,
    tell: Callable[[int], Any] = lambda size: None,
) -> list[str]:
    """See `manifest.problems`; empty for a checkpoint that cannot be verified."""
    if has_no_manifest(folder, step):
        return []
    return manifest.problems(folder / str(step), quick=quick, tell=tell)


def check(folder: epath.Path, step: int, *, quick: bool = False) -> None:
    """Raises `ConfigError` if the files of a checkpoint are not as they were saved."""
    wrong = problems(folder, step, quick=quick)
    if wrong:
        raise ConfigError(
            f"the checkpoint of step {step} in {folder} is DAMAGED: {'; '.join(wrong)}; "
            "name another one, or copy it again from where it is whole"
        )
    if not quick:
        _warn_unverified(folder, step)


def newest_whole(folder: epath.Path, *, older: bool = False) -> tuple[int | None, list[int]]:
    """The newest checkpoint whose files are as they were saved, and the steps of damaged ones.

    Each damaged one is a warning.

    Args:
      folder: of the checkpoints.
      older: look for damage beyond it, too: at sizes, and into small files such as metrics.
    """
    chosen, damaged = None, []
    for step in reversed(steps(folder)):
        if chosen is not None and not older:
            break
        wrong = problems(folder, step, quick=chosen is not None)
        if wrong:
            logger.warning(
                "the checkpoint of step %d in %s is DAMAGED and is not used: %s",
                step, folder, "; ".join(wrong),
            )  # fmt: skip
            damaged.append(step)
        elif chosen is None:
            chosen = step
            if damaged:
                logger.warning("the checkpoint of step %d is used instead", step)
            _warn_unverified(folder, step)
    return chosen, damaged


def _warn_unverified(folder: epath.Path, step: int) -> None:
    if has_no_manifest(folder, step):
        logger.warning(
            "the checkpoint of step %d in %s is of an earlier version, without %s: whether its "
            "files are as they were saved cannot be known", step, folder, manifest.NAME,
        )  # fmt: skip
