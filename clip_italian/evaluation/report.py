"""The report of an evaluation: one JSON document, and the table made from it."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from clip_italian.evaluation.metrics import DIRECTIONS

FORMAT_VERSION = 1
_PACKAGES = ("clip_italian", "numpy", "jax", "jaxlib", "flax", "optax", "transformers")
_COLUMNS = ("R@1", "R@5", "R@10", "MRR@10")


@dataclasses.dataclass(frozen=True)
class Result:
    """Numbers of one model on one evaluation set.

    Attributes:
      model: what was evaluated, in a few words ("this run", "linear on colour histograms").
      set: name of the evaluation set.
      images: number of candidate images.
      captions: number of candidate captions.
      metrics: fractions by name, without the set's name; some may be missing.
    """

    model: str
    set: str
    images: int
    captions: int
    metrics: Mapping[str, float]


def make_report(
    results: Sequence[Result],
    *,
    protocol: str,
    data_fingerprint: str,
    command: str,
    step: int | None = None,
) -> dict[str, Any]:
    """Everything that another person needs to know about these numbers, ready for JSON.

    Args:
      results: one for each model and set, in the order in which the table shows them.
      protocol: name of the protocol, e.g. "records_validation".
      data_fingerprint: of the evaluated records.
      command: the command line that was run.
      step: optimizer steps the model was trained for; None when not ours.
    """
    return {
        "format_version": FORMAT_VERSION,
        "protocol": protocol,
        "data_fingerprint": data_fingerprint,
        "step": step,
        "results": [
            dataclasses.asdict(dataclasses.replace(result, metrics=dict(result.metrics)))
            for result in results
        ],
        "versions": _versions(),
        "hardware": _hardware(),
        "command": command,
    }


def dump(report: Mapping[str, Any]) -> str:
    """The report as JSON text. Raises `ValueError` on a number that is not finite."""
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def parse(text: str) -> dict[str, Any]:
    """Reads `dump`'s text. Raises `ValueError` when its format is not one that we read."""
    report = json.loads(text)
    version = report.get("format_version") if isinstance(report, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"report: format_version {version!r} cannot be read, this program reads "
            f"{FORMAT_VERSION}; update clip_italian, or evaluate again to write a new report"
        )
    return report


def table(report: Mapping[str, Any]) -> str:
    """The report's numbers as plain text: percent with one decimal, ranks as they are."""
    results = report["results"]
    by_set: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for result in results:
        key = (result["set"], result["images"], result["captions"])
        by_set.setdefault(key, []).append(result)
    several = len({result["model"] for result in results}) > 1
    blocks = [_block(*key, members, several) for key, members in by_set.items()]
    return "\n\n".join(blocks) + "\n"


def _block(
    name: str, images: int, captions: int, results: Sequence[Mapping[str, Any]], several: bool
) -> str:
    rows = [["", *(f"{column} %" for column in _COLUMNS), "median rank"]]
    notes = []
    for result in results:
        values, model = result["metrics"], f" ({result['model']})" if several else ""
        for direction in DIRECTIONS:
            cells = [_percent(values.get(f"{direction}/{column}")) for column in _COLUMNS]
            rank = values.get(f"{direction}/median_rank")
            title = direction.replace("_to_", " → ")
            rows.append([title + model, *cells, "-" if rank is None else f"{rank:g}"])
        accuracy = [
            f"{key.removeprefix('zero_shot/')} {_percent(value)}%"
            for key, value in values.items()
            if key.startswith("zero_shot/")
        ]
        if accuracy:
            notes.append(f"zero-shot{model}: {', '.join(accuracy)}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    chance = f"chance R@1 of text → image {100 / images:.2g}%"
    return "\n".join(
        [f"{name}: {images:,} images, {captions:,} captions; {chance}"] + lines + notes
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        # Absent: a source tree that was never installed, or an extra.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _hardware() -> dict[str, Any]:
    return {
        "devices": jax.device_count(),
        "device_kind": jax.devices()[0].device_kind,
        "processes": jax.process_count(),
        "cpus": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
