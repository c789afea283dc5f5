"""A report as plain text for a terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from clip_italian.evaluation import report_tables as tables

_NOT_SHOWN = ("MRR@5",)  # for want of width
_WIDTH = 80  # characters of a terminal


def table(report: Mapping[str, Any]) -> str:
    """The report's numbers as plain text: percent with one decimal, ranks as they are.

    Nothing is cut: a name that leaves no room for the numbers has a line of its own.
    """
    found = tables.collect(report)
    parts = list(map(_text, found))
    if any(one.has_intervals() for one in found):
        parts.append("± is the farther end of the 95% interval; the report has both.")
    if report["comparisons"]:
        parts.append(_comparisons(report["comparisons"]))
    if report["seeds"]:
        parts.append(_seeds(report["seeds"]))
    return "\n\n".join(parts) + "\n"


def _text(one: tables.Table) -> str:
    kept = [n for n, title in enumerate(one.columns) if not title.startswith(_NOT_SHOWN)]
    task = "" if one.task == "retrieval" else f", {tables.TASKS.get(one.task, one.task)}"
    several = len({row.label for row in one.rows}) > 1
    lines: list[tuple[str, Sequence[tables.Cell | None] | None]] = []
    for group, rows in one.groups():
        if several and group:
            lines.append((group, None))
        for row in rows:
            title = "  " * bool(group) + row.label if several else group or row.label
            lines.append((title, [row.cells[n] for n in kept]))
    cells = [found for _, found in lines if found is not None]
    columns = [
        _text_column(one.columns[n], [found[place] for found in cells])
        for place, n in enumerate(kept)
    ]
    room = _WIDTH - sum(2 + len(column[0]) for column in columns)
    fitting = [len(title) for title, _ in lines if len(title) <= max(room, 16)]
    room = max(fitting, default=0)
    text = [
        _fill(f"{one.set}{task}: {one.facts}"),
        "  ".join([" " * room, *(c[0] for c in columns)]),
    ]
    place = 0
    for title, found in lines:
        if found is None or len(title) > room:
            text.append(title)
            title = ""
        if found is not None:
            place += 1
            text.append("  ".join([title.ljust(room), *(c[place] for c in columns)]))
    return "\n".join(line.rstrip() for line in text)


def _text_column(title: str, cells: Sequence[tables.Cell | None]) -> list[str]:
    """Title and cells of one width, aligned at the decimal points of value and interval."""
    values = ["-" if cell is None else cell.number(cell.value) for cell in cells]
    halves = ["" if cell is None else cell.half() for cell in cells]
    wide, widest = max(map(len, values)), max(map(len, halves))
    pairs = [
        f"{value:>{wide}} {half:>{widest}}" if widest else f"{value:>{wide}}"
        for value, half in zip(values, halves, strict=True)
    ]
    width = max(len(title), *map(len, pairs))
    return [text.rjust(width) for text in (title, *pairs)]


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> str:
    lines = [_fill(tables.COMPARED, "")]
    pair = None
    for one in comparisons:
        if pair != (one["a"], one["b"]):
            pair = one["a"], one["b"]
            lines.append(_fill(f"{one['b']} minus {one['a']}, in points:"))
        cell = tables.difference_cell(one)
        sign = "+" if cell.value > 0 else ""
        numbers = (
            f"{sign}{cell.number(cell.value)} {cell.interval()}  p {tables.p_value(one['p_value'])}"
        )
        lines += _beside(f"  {tables.comparison_name(one)}", numbers)
    return "\n".join(lines)


def _seeds(seeds: Sequence[Mapping[str, Any]]) -> str:
    lines = ["Mean ± standard deviation over seeds"]
    for one in seeds:
        mean, deviation = tables.seed_cells(one)
        name = f"  {one['model']}: {tables.comparison_name(one)}"
        lines += _beside(name, f"{mean} ± {deviation} ({one['seeds']} seeds)")
    return "\n".join(lines)


def _beside(name: str, numbers: str) -> list[str]:
    """Name and numbers on one line, or on two where they do not fit."""
    room = _WIDTH - len(numbers) - 2
    return [f"{name:<{room}}  {numbers}"] if len(name) <= room else [name, f"{numbers:>{_WIDTH}}"]


def _fill(text: str, indent: str = "  ") -> str:
    return textwrap.fill(
        text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
