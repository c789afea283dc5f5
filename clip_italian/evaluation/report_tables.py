"""The numbers of a report as tables, from which text, Markdown and the page are made."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clip_italian.evaluation.contrast import CHANCE
from clip_italian.evaluation.metrics import DIRECTIONS

TASKS = {
    "retrieval": "retrieval",
    "zero_shot": "zero-shot classification",
    "linear_probe": "linear probe",
    "knn": "nearest neighbours",
    "contrast": "contrast probes",
}
# What a run logs of its speed → what it is called, and its format.
SPEED = {
    "rate/pairs_per_second": ("pairs/s", "{:,.1f}"),
    "rate/mfu": ("MFU", "{:.1%}"),
    "rate/data_wait": ("data wait", "{:.1%}"),
    "rate/padding": ("padding", "{:.1%}"),
    "memory/peak_gb": ("peak memory", "{:.1f} GB"),
}
# MRR@1 is R@1.
_RETRIEVAL = ("R@1", "R@5", "R@10", "MRR@5", "MRR@10", "median_rank")
COMPARED = (
    "Paired tests on the same data; in brackets 95% intervals over the test images. An interval "
    "that holds 0 does not say which model is better. The p-values are not corrected for their "
    "number."
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number with its 95% interval, where there is one; a fraction, or a rank."""

    value: float
    low: float | None
    high: float | None
    rank: bool

    def number(self, value: float) -> str:
        """Percent with one decimal; ranks with two, where they are not whole."""
        rank = f"{value:,.2f}".rstrip("0").rstrip(".")
        return rank if self.rank else f"{100 * value:.1f}"

    def interval(self) -> str:
        """As in "[36.4, 39.6]", or empty."""
        if self.low is None or self.high is None:
            return ""
        return f"[{self.number(self.low)}, {self.number(self.high)}]"

    def half(self) -> str:
        """As in "±1.6": the farther end of the interval; or empty."""
        if self.low is None or self.high is None:
            return ""
        return f"±{self.number(max(self.high - self.value, self.value - self.low))}"


@dataclasses.dataclass(frozen=True)
class Row:
    """What one model has in one group of a table; `index` is the place of its result."""

    index: int
    group: str
    model: str
    variant: str
    cells: tuple[Cell | None, ...]

    @property
    def label(self) -> str:
        return label(self.model, self.variant)


@dataclasses.dataclass(frozen=True)
class Table:
    """All results of one task on one set.

    Attributes:
      facts: what was evaluated, in words: images, texts, what chance would give.
      columns: titles.
      rows: group by group ("text → image", or the name of a probe; empty where there is but one).
      results: the results themselves.
    """

    task: str
    set: str
    protocol: str
    data_fingerprint: str
    facts: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    results: tuple[Mapping[str, Any], ...]

    def groups(self) -> Iterator[tuple[str, list[Row]]]:
        """(group, its rows)."""
        for group in dict.fromkeys(row.group for row in self.rows):
            yield group, [row for row in self.rows if row.group == group]

    def has_intervals(self) -> bool:
        return any(cell and cell.interval() for row in self.rows for cell in row.cells)


def label(model: str, variant: str = "") -> str:
    """What a result is called: the model, and which names and prompts."""
    return f"{model} ({variant})" if variant else model


def collect(report: Mapping[str, Any]) -> list[Table]:
    """The tables of a report, in the order of its results."""
    members: dict[tuple[str, ...], list[tuple[int, Mapping[str, Any]]]] = {}
    for index, result in enumerate(report["results"]):
        key = tuple(result[name] for name in ("task", "set", "protocol", "data_fingerprint"))
        members.setdefault(key, []).append((index, result))
    return [one for one in map(_table, members.values()) if one.rows]


def made_by(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, value) of everything that made these numbers, but the command."""
    rows = [] if report["step"] is None else [("training step", f"{report['step']:,}")]
    if report["training_data"]:
        rows.append(("fingerprint of the training data", report["training_data"]))
    rows += [(f"training, {name}", value) for name, value in speed_rows(report)]
    models = dict.fromkeys((r["model"], r["model_fingerprint"]) for r in report["results"])
    rows += [(f"fingerprint of {name}", value) for name, value in models if value]
    rows += [(name.replace("_", " "), str(value)) for name, value in report["hardware"].items()]
    rows += [(name, str(value)) for name, value in report["versions"].items()]
    return rows + [
        (f"seconds, {name}", f"{s:,.1f}") for name, s in report.get("timing", {}).items()
    ]


def speed_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, value) of how fast the model was trained; empty where that is not known."""
    found = report.get("speed", {})
    return [
        (title, form.format(found[name])) for name, (title, form) in SPEED.items() if name in found
    ]


def comparison_name(one: Mapping[str, Any]) -> str:
    """Of a paired test or of seeds: set, metric and variant."""
    metric = metric_title(one["metric"])
    return f"{one['set']}, {metric}" + (f" ({one['variant']})" if one.get("variant") else "")


def metric_title(metric: str) -> str:
    """`text_to_image/R@1` → "text → image R@1", `zero_shot/acc@1` → "zero-shot acc@1"."""
    for written, shown in (("_to_", " → "), ("zero_shot", "zero-shot"), ("/", " "), ("_", " ")):
        metric = metric.replace(written, shown)
    return metric


def difference_cell(one: Mapping[str, Any]) -> Cell:
    """A paired test's difference, b - a."""
    rank = one["metric"].endswith("median_rank")
    return Cell(one["difference"], one["low"], one["high"], rank)


def p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def seed_cells(one: Mapping[str, Any]) -> tuple[str, str]:
    """Mean and standard deviation over seeds, as text."""
    cell = Cell(one["mean"], None, None, one["metric"].endswith("median_rank"))
    return cell.number(one["mean"]), cell.number(one["sd"])


def _table(members: Sequence[tuple[int, Mapping[str, Any]]]) -> Table:
    """The table of results of one task on one set, each with its place in the report."""
    results = tuple(result for _, result in members)
    columns, groups = _layout(results[0]["task"], results)
    rows = []
    for group, names in groups.items():
        for index, result in members:
            cells = tuple(_cell(result, name) for name in names)
            if any(cells):
                rows.append(Row(index, group, result["model"], result["variant"], cells))
    kept = [n for n in range(len(columns)) if any(row.cells[n] for row in rows)]
    rows = [dataclasses.replace(row, cells=tuple(row.cells[n] for n in kept)) for row in rows]
    return Table(
        **{name: results[0][name] for name in ("task", "set", "protocol", "data_fingerprint")},
        facts=_facts(results),
        columns=tuple(columns[n] for n in kept),
        rows=tuple(rows),
        results=results,
    )


def _layout(
    task: str, results: Sequence[Mapping[str, Any]]
) -> tuple[list[str], dict[str, list[str]]]:
    """Titles of the columns; group → the metrics that stand in them."""
    names = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    if task == "retrieval":
        titles = [f"{name} %" if "@" in name else "median rank" for name in _RETRIEVAL]
        return titles, {
            one.replace("_to_", " → "): [f"{one}/{name}" for name in _RETRIEVAL]
            for one in DIRECTIONS
        }
    if task == "contrast":
        parts = [name.removeprefix("contrast/").rpartition("/") for name in names]
        scores = list(dict.fromkeys(score for _, _, score in parts))
        return [f"{score} %" for score in scores], {
            probe.replace("_", " ") or "all": [
                "/".join(filter(None, ["contrast", probe, score])) for score in scores
            ]
            for probe in dict.fromkeys(probe for probe, _, _ in parts)
        }
    own = [name for name in names if name.startswith(f"{task}/")]
    return [f"{name.removeprefix(f'{task}/')} %" for name in own], {"": own}


def _cell(result: Mapping[str, Any], name: str) -> Cell | None:
    value = result["metrics"].get(name)
    if value is None or not math.isfinite(value):
        return None
    low, high = result["intervals"].get(name, (None, None))
    return Cell(value, low, high, name.endswith("median_rank"))


def _facts(results: Sequence[Mapping[str, Any]]) -> str:
    texts = sorted({result["captions"] for result in results} - {0})
    span = " to ".join(f"{count:,}" for count in dict.fromkeys([*texts[:1], *texts[-1:]]))
    task, images = results[0]["task"], results[0]["images"]
    facts = f"{images:,} images"
    if texts:
        facts += f", {span} {'captions' if task == 'retrieval' else 'texts'}"
    classes = {len(result["details"].get("per_class", ())) for result in results} - {0}
    if task == "retrieval":
        facts += f"; chance R@1 of text → image {100 / images:.2g}%"
    elif task == "contrast":
        facts += "; by chance " + ", ".join(f"{name} {100 * p:.2g}%" for name, p in CHANCE.items())
    elif len(classes) == 1:
        (count,) = classes
        facts += f", {count:,} classes; chance acc@1 {100 / count:.2g}%"
    return facts
