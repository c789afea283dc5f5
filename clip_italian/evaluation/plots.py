"""Curves of a run, drawn from the lines of its `metrics.jsonl`."""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]

_BLUES = ("#08306b", "#2f7fbc", "#8fc1e3")
_COLOURS = ("#1f6fb4", "#d95f02", "#1b9e77", "#7b3294", "#666666")
_DASHES = ("-", "--", ":", "-.")
# Panel title → the metrics that belong to it; the groups of the match make the line's label.
_PANELS = {
    "Loss": r"(?:(.+)/)?loss",
    "Learning rate": r"(?:.+/)?learning_rate(?:[/_](.+))?",
    "Text → image recall": r"(?:(.+)/)?text_to_image/(R@\d+)",
    "Image → text recall": r"(?:(.+)/)?image_to_text/(R@\d+)",
    "Zero-shot accuracy": r"(?:(.+)/)?zero_shot/(acc@\d+)",
    "Training speed": r"rate/(pairs_per_second)",
}


def read_metrics(lines: Iterable[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Lines of JSON {"step": int, name: number, ...} → {name: (steps, values)}, both float64 [n].

    A resumed run may log a step twice: the later line holds. A run that was killed may leave half
    a line: it is passed over, as is everything that is not a number.
    """
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(entry, dict) or "step" not in entry:
            continue
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float):
                found.setdefault(name, {})[entry["step"]] = value
    return {
        name: (
            np.array(sorted(points), float),
            np.array([points[s] for s in sorted(points)], float),
        )
        for name, points in found.items()
    }


def plot_curves(curves: Curves, phases: Sequence[tuple[int, str]] = (), title: str = "") -> Figure:
    """One panel for each kind of metric that was logged.

    Shows losses (every name that ends in `loss`), learning rates (`learning_rate...`), recall at
    1, 5 and 10 in both directions, zero-shot accuracy, and pairs a second.

    Args:
      curves: from `read_metrics`.
      phases: (first step, label) of each training phase; a vertical line where one begins.
      title: above the panels.

    Raises:
      ValueError: none of these was logged.
    """
    panels = {name: _members(curves, pattern) for name, pattern in _PANELS.items()}
    panels = {name: members for name, members in panels.items() if members}
    if not panels:
        raise ValueError("metrics: no loss, learning rate, recall or accuracy was logged")
    last = max(steps[-1] for members in panels.values() for steps, _ in members.values())
    begun = [phase for phase in phases if phase[0] <= last]  # a label far outside breaks the layout
    rows = -(-len(panels) // 2)
    columns = min(len(panels), 2)
    figure = Figure(figsize=(6.2 * columns, 0.5 + 3.4 * rows), layout="constrained")
    if title:
        figure.suptitle(title)
    for index, (name, members) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw(axes, name, members)
        _mark_phases(axes, begun)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)  # a bare Figure draws with Agg
    return buffer.getvalue()


def _members(curves: Curves, pattern: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    members = {}
    for name, points in curves.items():
        match = re.fullmatch(pattern, name)
        if match:
            label = " ".join(group for group in match.groups() if group)
            members[label.replace("/", " ") or name] = points
    return members


def _draw(axes: Axes, title: str, members: Curves) -> None:
    recall = all("@" in label for label in members)
    for index, (label, (steps, values)) in enumerate(members.items()):
        colours = _BLUES if recall else _COLOURS
        # Shades of one set share a dash; curves of unlike kinds may lie on each other.
        dash = index // len(colours) if recall else index
        often = len(steps) > 60
        axes.plot(
            steps,
            values,
            label=label,
            color=colours[index % len(colours)],
            linestyle=_DASHES[dash % len(_DASHES)],
            linewidth=1 if often else 1.8,
            marker=None if often else "o",
            markersize=3.5,
        )
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("step")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if recall:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
    axes.legend(frameon=False, fontsize=9)


def _mark_phases(axes: Axes, phases: Sequence[tuple[int, str]]) -> None:
    for first_step, label in phases:
        if first_step > 0:
            axes.axvline(first_step, color="#555555", linewidth=1, linestyle=(0, (4, 3)))
        place = axes.get_xaxis_transform()
        axes.text(first_step, 1.0, f" {label}", transform=place, fontsize=8, color="#444444",
                  va="top")  # fmt: skip
