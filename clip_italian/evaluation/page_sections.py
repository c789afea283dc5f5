"""What the page shows of one task on one set, made ready for the template."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clip_italian.evaluation import contrast, page_plots, report_tables
from clip_italian.evaluation.metrics import DIRECTIONS
from clip_italian.evaluation.report_tables import Cell, Row, Table

CLASSES = 20  # shown of the best and of the worst; up to twice as many are all shown
CONFUSIONS = 20  # pairs shown


@dataclasses.dataclass(frozen=True)
class Dot:
    """A value with its interval on an axis, in percent of the axis."""

    model: str
    variant: str
    number: int
    text: str
    value: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Dots:
    """Dots on one axis; ticks as (place in percent, label); what chance would give."""

    title: str
    dots: tuple[Dot, ...]
    ticks: tuple[tuple[float, str], ...]
    chance: float | None


@dataclasses.dataclass(frozen=True)
class Classes:
    """Accuracy of single classes of one result: (class_id, name, accuracy, images)."""

    label: str
    number: int
    language: str
    parts: Mapping[str, Sequence[Sequence[Any]]]
    histogram: Any
    seen: int
    unseen: int
    confusions: Sequence[Sequence[Any]]


def section(table: Table, models: Mapping[str, int]) -> dict[str, Any]:
    """One task on one set."""
    with_classes = [one for one in table.results if one["details"].get("per_class")]
    return {
        "table": table,
        "title": report_tables.TASKS[table.task],
        "languages": ", ".join(
            dict.fromkeys(r["language"] for r in table.results if r["language"])
        ),
        "dots": list(_dots(table, models)),
        "curves": _curves(table, models),
        "classes": [_classes(one, models) for one in with_classes],
        "variants": list(_variants(with_classes)),
        "chosen": [
            (one["model"], name.replace("_", " "), value)
            for one in table.results
            if table.task in ("linear_probe", "knn")
            for name, value in one["details"].items()
        ],
    }


def _dots(table: Table, models: Mapping[str, int]) -> Iterator[Dots]:
    """The table's first column as dots and whiskers, a figure for each group."""
    chance = contrast.CHANCE["accuracy"] if table.task == "contrast" else None
    for group, rows in table.groups():
        shown = [(row, row.cells[0]) for row in rows if row.cells[0]]
        ends = [end for _, cell in shown for end in (cell.value, cell.low, cell.high)]
        start, step, steps = _axis([end for end in ends if end is not None], chance)
        share = 100 / (step * steps)  # of the axis, in percent
        dots = tuple(_dot(row, cell, start, share, models) for row, cell in shown)
        ticks = tuple((100 * n / steps, f"{100 * (start + n * step):g}%") for n in range(steps + 1))
        title = ", ".join(filter(None, [group, table.columns[0].removesuffix(" %")]))
        yield Dots(title, dots, ticks, None if chance is None else share * (chance - start))


def _dot(row: Row, cell: Cell, start: float, share: float, models: Mapping[str, int]) -> Dot:
    value, low, high = (
        None if end is None else share * (end - start) for end in (cell.value, cell.low, cell.high)
    )
    assert value is not None
    colour = page_plots.style_of(models[row.model])[0]
    return Dot(row.model, row.variant, colour, cell.number(cell.value), value, low, high)


def _axis(values: Sequence[float], chance: float | None) -> tuple[float, float, int]:
    """Start, step and number of steps of an axis that shows fractions and how far apart they are.

    With a chance level it is the same whatever the values are: from 0 to 1.
    """
    if chance is not None or not values:
        return 0.0, 0.25, 4
    low, high = max(min(values), 0.0), min(max(values), 1.0)
    for step in (0.005, 0.01, 0.02, 0.05, 0.1):
        start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if end - start <= 5:
            start = min(start, round(1 / step) - 1)  # a lone 100% needs an axis as well
            return round(start * step, 6), step, max(end - start, 1)
    return 0.0, 0.2, 5


def _curves(table: Table, models: Mapping[str, int]) -> list[tuple[str, Any]]:
    """(direction, SVG) with the recall curves of all models."""
    import markupsafe

    figures = []
    for direction in DIRECTIONS:
        curves = {
            models[one["model"]]: one["details"]["recall_curves"][direction]
            for one in table.results
            if direction in one["details"].get("recall_curves", {})
        }
        if curves:
            name = report_tables.metric_title(direction)
            names = {number: model for model, number in models.items()}
            said = ", ".join(
                f"{names[n]} "
                + " and ".join(f"{100 * share:.1f}% at {k}" for k, share in (curve[0], curve[-1]))
                for n, curve in curves.items()
            )
            svg = page_plots.recall_svg(curves, f"Recall at k, {name}, {table.set}: {said}")
            figures.append((name, markupsafe.Markup(svg)))
    return figures


def _classes(result: Mapping[str, Any], models: Mapping[str, int]) -> Classes:
    import markupsafe

    per_class = result["details"]["per_class"]
    seen = [one for one in per_class if one[2] is not None]
    # Of equals the class with more images is the surer one; then the order of the classes decides.
    best = sorted(seen, key=lambda one: (-one[2], -one[3]))
    worst = sorted(seen, key=lambda one: (one[2], -one[3]))
    few = len(seen) <= 2 * CLASSES
    name = report_tables.label(result["model"], result["variant"])
    histogram = ""
    if not few:
        accuracies = [one[2] for one in seen]
        alt = (
            f"Histogram of the accuracy of {len(seen):,} classes, {name}, {result['set']}: median "
            f"{100 * np.median(accuracies):.1f}%"
        )
        svg = page_plots.accuracy_svg(accuracies, models[result["model"]], alt)
        histogram = markupsafe.Markup(svg)
    return Classes(
        name,
        page_plots.style_of(models[result["model"]])[0],
        result["language"],
        {"all classes": best}
        if few
        else {f"best {CLASSES}": best[:CLASSES], f"worst {CLASSES}": worst[:CLASSES]},
        histogram,
        len(seen),
        len(per_class) - len(seen),
        result["details"].get("confusions", [])[:CONFUSIONS],
    )


def _variants(results: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each model with several names and prompts: the classes on which they differ most."""
    for model in dict.fromkeys(one["model"] for one in results):
        own = [one for one in results if one["model"] == model]
        by_class = [{row[0]: row for row in one["details"]["per_class"]} for one in own]
        rows = [(class_id, [names.get(class_id) for names in by_class]) for class_id in by_class[0]]
        rows = [row for row in rows if all(one and one[2] is not None for one in row[1])]
        spread = {row[0]: np.ptp([one[2] for one in row[1] if one]) for row in rows}
        rows = sorted((row for row in rows if spread[row[0]] > 0), key=lambda r: -spread[r[0]])
        if len(own) > 1 and rows:
            yield {
                "model": model,
                "names": [one["variant"] for one in own],
                "languages": [one["language"] for one in own],
                "rows": rows[:CLASSES],
                "equal": len(spread) - sum(value > 0 for value in spread.values()),
            }
