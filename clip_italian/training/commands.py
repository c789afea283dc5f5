"""`clip-italian checkpoint`: what a run has saved, and whether it is as it was saved."""

import datetime
import json
from collections.abc import Callable, Sequence
from typing import Annotated

import tyro
from etils import epath
from tqdm import tqdm

from clip_italian.config import ConfigError
from clip_italian.training import manifest, saved

Workdir = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORKDIR")]


def run(words: Sequence[str], say: Callable[[str], None]) -> int:
    """Runs `clip-italian checkpoint list|verify`; returns the exit status, 1 for damage.

    Needs no accelerator and no network, and changes nothing.

    Args:
      words: of the command line.
      say: takes lines for the person.

    Raises:
      ConfigError: the folder is none of a run, or has no such step.
    """

    def list_(workdir: Workdir) -> int:
        """List the checkpoints of a run. Sizes of files are compared, their contents are not.

        Args:
          workdir: folder of the run; may be remote (gs://...).
        """
        for line in table(_open(workdir)):
            say(line)
        return 0

    def verify(workdir: Workdir, step: int | None = None) -> int:
        """Read checkpoints in full and compare every file with its SHA-256 from when it was saved.

        Args:
          workdir: folder of the run; may be remote (gs://...).
          step: only that of this step.
        """
        folder = _open(workdir)
        steps = saved.steps(folder)
        if step is not None and step not in steps:
            raise ConfigError(f"step = {step} is no checkpoint of {workdir}; it has {steps}")
        return int(_verify(folder, steps if step is None else [step], say))

    return tyro.extras.subcommand_cli_from_dict(
        {"list": list_, "verify": verify},
        args=list(words) or ["--help"],
        prog="clip-italian checkpoint",
        description="What a run has saved, and whether it is as it was saved.",
        use_underscores=True,
    )


def _open(workdir: str) -> epath.Path:
    folder = epath.Path(workdir) / "checkpoints"
    if not folder.is_dir():
        raise ConfigError(f"{workdir} holds no folder `checkpoints`; name the folder of a run")
    return folder


def table(folder: epath.Path) -> list[str]:
    """The lines of `list`."""
    steps = saved.steps(folder)
    values = {step: saved.metrics(folder, step) for step in steps}
    metric = next((name for step in reversed(steps) for name in values[step]), "")
    best = saved.best(folder, metric)
    rows = [("step", "saved (UTC)", "MB", metric or "metric", "", "files")]
    for step in steps:
        place, value = folder / str(step), values[step].get(metric)
        size = sum((place / name).stat().length for name in manifest.names_of(place))
        rows.append(
            (
                f"{step:,}",
                _date(place),
                f"{size / 1e6:,.1f}",
                "" if value is None else f"{value:.4f}",
                "best" if best and best[0] == step else "",
                _state(folder, step),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row[:4], widths, strict=False))
        + f"  {row[4].ljust(widths[4])}  {row[5]}"
        for row in rows
    ]
    left = sorted(path.name for path in folder.iterdir() if not path.name.isdecimal())
    aside = folder.parent / "damaged"
    damaged = sorted(path.name for path in aside.iterdir()) if aside.is_dir() else []
    return [
        *lines,
        *[f"left over, deleted at the next start: {name}" for name in left],
        *[f"set aside as damaged: {aside / name}" for name in damaged],
    ]


def _date(place: epath.Path) -> str:
    try:
        found = json.loads((place / "_CHECKPOINT_METADATA").read_text())["commit_timestamp_nsecs"]
        when = datetime.datetime.fromtimestamp(found / 1e9, datetime.UTC)
    except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError):
        return "?"
    return when.strftime("%Y-%m-%d %H:%M:%S")


def _state(folder: epath.Path, step: int) -> str:
    if saved.has_no_manifest(folder, step):
        return "no manifest (earlier version)"
    wrong = saved.problems(folder, step, quick=True)
    return f"DAMAGED: {'; '.join(wrong)}" if wrong else "not verified"


def _verify(folder: epath.Path, steps: Sequence[int], say: Callable[[str], None]) -> bool:
    """Whether any is damaged."""
    sizes = {step: _sealed_size(folder / str(step)) for step in steps}
    damaged = False
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, delay=1) as bar:
        for step in steps:
            if saved.has_no_manifest(folder, step):
                say(f"step {step}: cannot be verified, an earlier version wrote no {manifest.NAME}")
                continue
            wrong = saved.problems(folder, step, tell=bar.update)
            if not (folder / str(step)).exists():
                say(f"step {step}: deleted meanwhile by the run, which keeps newer ones")
                continue
            damaged |= bool(wrong)
            say(f"step {step}: DAMAGED" if wrong else f"step {step}: ok, {sizes[step]:,} bytes")
            for line in wrong:
                say(f"  {line}")
    return damaged


def _sealed_size(place: epath.Path) -> int:
    try:
        return sum(seal["bytes"] for seal in manifest.read(place).values())
    except (FileNotFoundError, ValueError):
        return 0
