"""The report of an evaluation: one JSON document, and beside it the rank of every query."""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import os
import platform
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from clip_italian.config import ConfigError
from clip_italian.evaluation.report_markdown import markdown
from clip_italian.evaluation.report_text import table

__all__ = [
    "FORMAT_VERSION", "ITEMS", "REPORT", "Result", "dump", "make_report", "markdown", "parse",
    "read", "results", "table", "write",
]  # fmt: skip

FORMAT_VERSION = 2
REPORT, ITEMS = "report.json", "items.npz"  # in the folder of a report
_FIELDS = (
    "command", "step", "training_data", "versions", "hardware", "results", "comparisons", "seeds",
)  # fmt: skip
_PACKAGES = (
    "clip_italian", "numpy", "scipy", "jax", "jaxlib", "flax", "optax", "transformers", "torch",
    "sentence-transformers", "open_clip_torch", "scikit-learn",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Numbers of one model on one evaluation set.

    Attributes:
      model: what was evaluated, in a few words ("this run", "mCLIP").
      model_fingerprint: of its weights; empty when unknown.
      set: name of the evaluation set.
      protocol: how the set was made, e.g. "xm3600_p1".
      data_fingerprint: of the set; equal means equal data.
      language: of the texts, as a BCP 47 tag; empty when unknown.
      task: "retrieval", "zero_shot", "linear_probe", "knn" or "contrast".
      variant: of zero_shot, which names and prompts; else empty.
      images: number of images.
      captions: number of texts: captions, or prompts of all classes.
      metrics: by name ("text_to_image/R@1", "zero_shot/acc@1", "contrast/number/accuracy");
        fractions, but ranks where the name ends in "median_rank". Some may be missing.
      intervals: for some of them (low, high) at 95%.
      details: of the task, ready for JSON. retrieval: `recall_curves` {direction: [[k, recall]]};
        zero_shot: `per_class` [[class_id, name, accuracy or None, images]] and `confusions`
        [[true name, predicted name, count]], the most frequent first; linear_probe and knn: what
        was chosen on held-out data; contrast: numbers of each probe.
    """

    model: str
    model_fingerprint: str = ""
    set: str
    protocol: str
    data_fingerprint: str
    language: str = ""
    task: str
    variant: str = ""
    images: int
    captions: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def make_report(
    results: Sequence[Result],
    *,
    command: str,
    step: int | None = None,
    training_data: str = "",
    comparisons: Sequence[Mapping[str, Any]] = (),
    seeds: Sequence[Mapping[str, Any]] = (),
    timing: Mapping[str, float] | None = None,
    speed: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Everything that another person needs to know about these numbers, ready for JSON.

    Args:
      results: one for each model, set, task and variant, in the order in which tables show them.
      command: the command line that was run.
      step: optimizer steps the model was trained for; None when not ours.
      training_data: fingerprint of the records it was trained on; empty when not ours.
      comparisons: paired tests, each with set, task, metric, a, b, difference (b - a), low, high,
        p_value; `variant` tells names and prompts apart.
      seeds: each with model, set, metric, mean, sd, seeds (their number).
      timing: seconds by what they were spent on.
      speed: of the training, by the names in `report_tables.SPEED`.
    """
    return {
        "format_version": FORMAT_VERSION,
        "command": command,
        "step": step,
        "training_data": training_data,
        **({"timing": dict(timing)} if timing else {}),
        **({"speed": dict(speed)} if speed else {}),
        "versions": _versions(),
        "hardware": _hardware(),
        "results": [_to_json(result) for result in results],
        "comparisons": [dict(one) for one in comparisons],
        "seeds": [dict(one) for one in seeds],
    }


def results(report: Mapping[str, Any]) -> list[Result]:
    """The results of a report that `parse` or `make_report` gave."""
    return [Result(**one) for one in report["results"]]


def dump(report: Mapping[str, Any]) -> str:
    """The report as JSON text. Raises `ValueError` on a number that is not finite."""
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def parse(text: str) -> dict[str, Any]:
    """Reads `dump`'s text, and what version 1 wrote.

    Raises:
      ConfigError: this is no report, or of a format that is not read here.
    """
    try:
        report = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"report: this is no JSON ({error}); evaluate again") from error
    version = report.get("format_version") if isinstance(report, dict) else None
    if version not in (1, FORMAT_VERSION):
        raise ConfigError(
            f"report: format_version {version!r} cannot be read, this program reads 1 and "
            f"{FORMAT_VERSION}; update clip_italian, or evaluate again to write a new report"
        )
    try:
        report = _from_version_1(report) if version == 1 else report
        results({field: report[field] for field in _FIELDS})
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"report: not what format_version {version} holds ({error!r}); has it been edited? "
            "Evaluate again to write a new report"
        ) from error
    return report


def write(
    folder: str | os.PathLike[str],
    report: Mapping[str, Any],
    items: Sequence[Mapping[str, np.ndarray]],
) -> None:
    """Writes `report.json` and `items.npz`.

    Args:
      folder: where to; made if it is not there.
      report: from `make_report`.
      items: for each result the ranks behind its numbers: `text_to_image` int64 [captions] with
        `text_to_image/cluster` int32 [captions], likewise `image_to_text`; or `ranks` int64
        [images]; may be empty.

    Raises:
      ValueError: a number is not finite, or there are not as many items as results.
    """
    if len(items) != len(report["results"]):
        raise ValueError(f"{len(items)} items were given for {len(report['results'])} results")
    text = dump(report)
    arrays = {
        f"r{index}/{name}": np.asarray(array)
        for index, one in enumerate(items)
        for name, array in one.items()
    }
    wrong = [name for name, array in arrays.items() if array.dtype.kind not in "iuf"]
    if wrong:
        raise ValueError(f"items: {wrong} hold no numbers")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    place = epath.Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    (place / ITEMS).write_bytes(buffer.getvalue())
    (place / REPORT).write_text(text)


def read(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """The report in a folder, and the arrays of each result (empty ones where none were kept).

    Raises:
      ConfigError: a file is missing or broken, or they do not belong together.
    """
    place = epath.Path(folder)
    try:
        report = parse((place / REPORT).read_text())
    except OSError as error:
        raise ConfigError(
            f"{place / REPORT} cannot be read ({error}); give the folder that `evaluate` wrote"
        ) from error
    items: list[dict[str, np.ndarray]] = [{} for _ in report["results"]]
    if not (place / ITEMS).exists():
        return report, items
    try:
        with np.load(io.BytesIO((place / ITEMS).read_bytes()), allow_pickle=False) as arrays:
            for key in arrays.files:
                number, _, name = key.partition("/")
                items[int(number.removeprefix("r"))][name] = arrays[key]
    except (OSError, ValueError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{place / ITEMS} cannot be read or belongs to another report ({error}); evaluate again"
        ) from error
    return report, items


def _to_json(result: Result) -> dict[str, Any]:
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    intervals = {name: [float(end) for end in ends] for name, ends in result.intervals.items()}
    return {
        **fields,
        "metrics": dict(result.metrics),
        "intervals": intervals,
        "details": dict(result.details),
    }


def _from_version_1(old: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 held one protocol, and zero-shot numbers among those of retrieval."""
    found = []
    for one in old["results"]:
        shared = {
            "set": one["set"],
            "protocol": old["protocol"],
            "data_fingerprint": old["data_fingerprint"],
            "images": one["images"],
            "captions": one["captions"],
        }
        for task in ("retrieval", "zero_shot"):
            values = {
                name: value
                for name, value in one["metrics"].items()
                if name.startswith("zero_shot/") == (task == "zero_shot")
            }
            if values or task == "retrieval":
                found.append(Result(model=one["model"], task=task, metrics=values, **shared))
    return {
        "format_version": FORMAT_VERSION,
        **{key: old[key] for key in ("command", "step", "versions", "hardware")},
        "training_data": "",
        "results": [_to_json(result) for result in found],
        "comparisons": [],
        "seeds": [],
    }


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
