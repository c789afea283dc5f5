"""Figures of the page, as SVG that takes its colours from the page: light or dark."""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

# Drawn in these colours, which become the page's variables: --m0, --m1, ... one for each model.
COLOURS = (
    "#1f6fb4", "#d95f02", "#1b9e77", "#7b3294", "#c51b7d", "#8c6d1f", "#2b8cbe", "#666666",
)  # fmt: skip
DASHES = ("solid", "dashed", "dotted")  # CSS and matplotlib use the same words
_TEXT, _SOFT, _LINE = "#1c1c1c", "#575757", "#d4d7dc"
_VARIABLES = {
    **{colour: f"var(--m{number})" for number, colour in enumerate(COLOURS)},
    _TEXT: "var(--text)",
    _SOFT: "var(--soft)",
    _LINE: "var(--line)",
}
_SIZE = (4.4, 3.0)  # inches; a phone shows it at about one pixel a point
_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def style_of(number: int) -> tuple[int, str]:
    """Colour (index into `COLOURS`) and dash of the model with this number."""
    return number % len(COLOURS), DASHES[number // len(COLOURS) % len(DASHES)]


def recall_svg(curves: Mapping[int, Sequence[Sequence[float]]], alt: str) -> str:
    """Recall over k, the number of candidates that are looked at.

    Args:
      curves: number of the model → [[k, recall]], k rising.
      alt: what the figure says, in words.
    """
    figure, axes = _figure()
    last = max(curve[-1][0] for curve in curves.values())
    for number, curve in curves.items():
        colour, dash = style_of(number)
        ks, recalls = np.array(curve, float).T
        marker = "o" if len(ks) == 1 else None
        axes.plot(ks, recalls, linestyle=dash, color=COLOURS[colour], linewidth=2, marker=marker)
    axes.set_xscale("log")
    axes.set(xlim=(0.95, max(last, 2) * 1.05), ylim=(0, 1.01), xlabel="k")
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if tick <= last]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return svg(figure, alt)


def accuracy_svg(accuracies: Sequence[float], number: int, alt: str) -> str:
    """How many classes have which accuracy: a histogram in steps of 5 points.

    Args:
      accuracies: fraction of each class.
      number: of the model, which gives the colour.
      alt: what the figure says, in words.
    """
    figure, axes = _figure()
    counts, edges = np.histogram(accuracies, bins=20, range=(0, 1))
    axes.bar(edges[:-1], counts, 0.044, align="edge", color=COLOURS[style_of(number)[0]])
    axes.set(xlim=(-0.04, 1.04), xlabel="accuracy of the class", ylabel="classes")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return svg(figure, alt)


def svg(figure: Figure, alt: str) -> str:
    """The figure as an `<svg>` element for the inside of a page; always the same bytes.

    Texts stay texts, in the font of the page.
    """
    import markupsafe

    # Two figures of a page must not share the ids that their parts refer to.
    salt = hashlib.sha256(alt.encode("utf-8", "backslashreplace")).hexdigest()
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for unneeded in (r"<metadata>.*?</metadata>", r"<!--.*?-->", r"<defs>\s*<style.*?</defs>"):
        text = re.sub(unneeded + r"\s*", "", text, count=0, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text, count=1)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    label = markupsafe.escape(alt)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes: Any = figure.add_subplot()
    axes.grid(color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, labelcolor=_SOFT, labelsize=10, length=0)
    axes.xaxis.label.set(color=_SOFT, fontsize=10)
    axes.yaxis.label.set(color=_SOFT, fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    return figure, axes
