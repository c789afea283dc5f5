"""Pictures of a data card: the funnel, lengths of captions, a sheet of pictures."""

import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import blended_transform_factory
from PIL import Image

from data_prep.card_numbers import Lengths, Line
from data_prep.images import to_rgb
from data_prep.pages import plain

KINDS = {
    "kept": ("#1f6fb4", "remaining"),
    "lost": ("#d95f02", "rejected"),
    "joined": ("#7b3294", "joined another"),
    "skipped": ("#8a8f98", "not asked for"),
}
COLUMNS = 4  # of the sheet
_WIDTH, _LEFT = 8.6, 3.1  # of the funnel, and of its labels, inches
_ROW = 0.23  # height of a line of the funnel, inches
_LABEL = 37  # characters of a label before it wraps
_BINS = 50
_CELL = 2.0  # width of a cell of the sheet, inches
_TEXT = 0.62  # height of the captions in a cell, inches


def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Captions may be in any script; what the font lacks is shown as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=dpi)  # a bare Figure draws with Agg
    return buffer.getvalue()


def funnel_figure(funnels: Mapping[str, Sequence[Line]], title: str = "") -> Figure:
    """Bars from what there was to what is left, one panel each for entries, rows and captions.

    A blue bar is what there is at that point; below it, bars cut from its right end show what
    the next step took away and why.

    Args:
      funnels: from `card_numbers.funnel`.
      title: above the panels.
    """
    labels = {
        unit: [textwrap.fill(plain(line.label, 2 * _LABEL), _LABEL) for line in lines]
        for unit, lines in funnels.items()
    }
    heights = [sum(map(_lines, labels[unit])) * _ROW for unit in funnels]
    top, gap, foot = 0.55 if title else 0.15, 0.75, 0.4  # inches
    total = top + sum(heights) + gap * len(heights) + foot
    figure = Figure(figsize=(_WIDTH, total))
    if title:
        heading = textwrap.shorten(plain(title), 70, placeholder=" …")
        figure.text(0.015, 1 - 0.3 / total, heading, fontsize=12, parse_math=False)
    y = top
    for height, (unit, lines) in zip(heights, funnels.items(), strict=True):
        y += 0.3 + height
        place = (_LEFT / _WIDTH, 1 - y / total, 0.985 - _LEFT / _WIDTH, height / total)
        _draw_funnel(figure.add_axes(place), unit, lines, labels[unit])
        y += gap - 0.3
    used = {line.kind for lines in funnels.values() for line in lines}
    handles = [Patch(color=KINDS[kind][0], label=KINDS[kind][1]) for kind in KINDS if kind in used]
    figure.legend(handles=handles, loc="lower left", ncols=4, frameon=False, fontsize=9)
    return figure


def _lines(label: str) -> int:
    return label.count("\n") + 1


def _draw_funnel(axes: Axes, unit: str, lines: Sequence[Line], labels: Sequence[str]) -> None:
    most = max(max(line.count for line in lines), 1)
    figure = axes.get_figure()
    assert figure is not None
    where = blended_transform_factory(figure.transFigure, axes.transData)
    axes.text(0.13 / _WIDTH, -0.6, unit, fontsize=10, color="#555555", transform=where)
    place = 0.0  # in text lines, from above
    for line, label in zip(lines, labels, strict=True):
        y = place + _lines(label) / 2
        start = 0 if line.kind == "kept" else line.left
        # A bar that is too thin to be seen is drawn at the least width that can be.
        width = max(line.count, 0.004 * most if line.count else 0)
        axes.barh(y, width, left=start, height=0.72, color=KINDS[line.kind][0])
        sign = "" if line.kind == "kept" else "−"
        weight = "bold" if line.kind == "kept" else "normal"
        axes.text(start + width + 0.01 * most, y, f"{sign}{line.count:,}", va="center", fontsize=9,
                  weight=weight)  # fmt: skip
        indent = 0.13 if line.kind == "kept" else 0.28  # inches
        axes.text(indent / _WIDTH, y, label, va="center", fontsize=9, weight=weight,
                  transform=where, parse_math=False, linespacing=1.1)  # fmt: skip
        place += _lines(label)
    axes.set(xlim=(0, (1.05 + 0.018 * len(f"{most:,}")) * most), ylim=(place, 0), yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.tick_params(axis="x", labelsize=8, colors="#555555")
    axes.spines[["top", "right", "left"]].set_visible(False)


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:,.6g}{letter}"
    return f"{value:g}"


def lengths_figure(lengths: Sequence[Lengths]) -> Figure:
    """A histogram for each unit, with mean, median and upper percentiles."""
    figure = Figure(figsize=(5.4, 3.1 * len(lengths)), layout=ConstrainedLayoutEngine(hspace=0.06))
    panels = figure.subplots(len(lengths), 1, squeeze=False)[:, 0]
    for axes, one in zip(panels, lengths, strict=True):
        _draw_lengths(axes, one)
    return figure


def _draw_lengths(axes: Axes, lengths: Lengths) -> None:
    p99, longest = lengths.percentile(99), lengths.longest
    last = longest if longest <= 1.5 * p99 else math.ceil(1.25 * p99)  # a stray one squeezes none
    first = min(lengths.counts, default=0)
    width = max(1, math.ceil((last - first + 1) / _BINS))
    edges = np.arange(first, last + width + 1, width) - 0.5
    shown = {length: count for length, count in lengths.counts.items() if length <= edges[-1]}
    axes.hist(
        list(shown), bins=edges.tolist(), weights=list(shown.values()), color=KINDS["kept"][0]
    )
    marks: tuple[tuple[str, float, Any], ...] = (
        (f"median {lengths.percentile(50):,}", lengths.percentile(50), "-"),
        (f"mean {lengths.mean:,.1f}", lengths.mean, (0, (1, 1))),
        (f"95% up to {lengths.percentile(95):,}", lengths.percentile(95), "--"),
        (f"99% up to {p99:,}", p99, "-."),
    )
    for _, place, dash in marks:
        axes.axvline(place, color="#222222", linewidth=1.2, linestyle=dash)
    handles = [Line2D([], [], color="#222222", linestyle=dash, label=name, linewidth=1.2)
               for name, _, dash in marks]  # fmt: skip
    longer = lengths.captions - sum(shown.values())
    more = f", {longer:,} longer than shown" if longer else ""
    axes.set_title(f"Lengths in {lengths.unit}", loc="left", fontsize=11, pad=38)
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=2,
                frameon=False, fontsize=9, handlelength=1.8, columnspacing=1.2)  # fmt: skip
    axes.set_xlabel(f"{lengths.captions:,} captions{more}; longest {longest:,}")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.set_ylabel("captions")
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)


def sheet_figure(pictures: Sequence[tuple[bytes, str]]) -> Figure:
    """Pictures in a grid, each with a caption of up to four lines below it.

    Args:
      pictures: image file and caption of each; at least one.
    """
    rows = math.ceil(len(pictures) / COLUMNS)
    height = _CELL + _TEXT
    figure = Figure(figsize=(COLUMNS * _CELL, rows * height))
    # One set of axes in inches from the upper left corner: a hundred of them would take seconds.
    axes = figure.add_axes((0, 0, 1, 1))
    for number, (image, caption) in enumerate(pictures):
        _draw_cell(axes, number % COLUMNS * _CELL, number // COLUMNS * height, image, caption)
    axes.set(xlim=(0, COLUMNS * _CELL), ylim=(rows * height, 0), aspect="auto")
    axes.set_axis_off()
    return figure


def _draw_cell(axes: Axes, x: float, y: float, image: bytes, caption: str) -> None:
    small = to_rgb(Image.open(io.BytesIO(image)))
    small.thumbnail((400, 400))
    side = _CELL - 0.12
    wide, high = (side * pixels / max(small.size) for pixels in small.size)
    left, top = x + (_CELL - wide) / 2, y + _CELL - 0.06 - high
    axes.imshow(small, extent=(left, left + wide, top + high, top))
    lines = textwrap.wrap(plain(caption, 200), 32, max_lines=4, placeholder=" …")
    text = axes.text(x + _CELL / 2, y + _CELL, "\n".join(lines), fontsize=7.5, ha="center",
                     va="top", parse_math=False, linespacing=1.15)  # fmt: skip
    # Wide letters are cut at the cell rather than drawn over the next one.
    cell = Rectangle((x + 0.04, y), _CELL - 0.08, _CELL + _TEXT, transform=axes.transData)
    text.set(clip_on=True, clip_path=cell)
