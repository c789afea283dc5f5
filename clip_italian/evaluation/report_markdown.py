"""A report as Markdown."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from clip_italian.evaluation import report_tables as tables


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown: a table for each task and set, then how it was made."""
    parts = ["# Evaluation"]
    for one in tables.collect(report):
        parts += [f"## {_code(one.set)}: {tables.TASKS.get(one.task, one.task)}", _caption(one)]
        grouped = any(row.group for row in one.rows)
        variants = any(row.variant for row in one.rows)
        head = [*["what"] * grouped, "model", *["names and prompts"] * variants, *one.columns]
        rows = [
            [*[row.group] * grouped, row.model, *[row.variant] * variants, *map(_full, row.cells)]
            for row in one.rows
        ]
        parts.append(_markdown_table(head, rows, len(head) - len(one.columns)))
    parts += _markdown_comparisons(report)
    parts.append("## How it was made")
    parts.append("\n".join(f"- {name}: {_escape(value)}" for name, value in tables.made_by(report)))
    parts.append("    " + " ".join(report["command"].split()))
    return "\n\n".join(parts) + "\n"


def _caption(one: tables.Table) -> str:
    languages = ", ".join(dict.fromkeys(r["language"] for r in one.results if r["language"]))
    words = [
        f"Protocol {_code(one.protocol)}",
        *([f"language {_escape(languages)}"] if languages else []),
        f"data {_code(one.data_fingerprint[:12])}",
        one.facts,
    ]
    note = " In brackets 95% intervals." if one.has_intervals() else ""
    return f"{'; '.join(words)}.{note}"


def _full(cell: tables.Cell | None) -> str:
    return "" if cell is None else f"{cell.number(cell.value)} {cell.interval()}".strip()


def _markdown_comparisons(report: Mapping[str, Any]) -> list[str]:
    parts = []
    if report["comparisons"]:
        rows = [
            [tables.comparison_name(one), one["a"], one["b"], _full(tables.difference_cell(one)),
             tables.p_value(one["p_value"])]
            for one in report["comparisons"]
        ]  # fmt: skip
        head = ["set, metric", "a", "b", "b − a, points", "p"]
        parts += ["## Compared", tables.COMPARED, _markdown_table(head, rows, 3)]
    if report["seeds"]:
        rows = [
            [tables.comparison_name(one), one["model"], *tables.seed_cells(one), f"{one['seeds']}"]
            for one in report["seeds"]
        ]
        head = ["set, metric", "model", "mean", "sd", "seeds"]
        parts += ["## Several seeds", _markdown_table(head, rows, 2)]
    return parts


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """The first `words` columns are text, the others numbers."""
    marks = ["---" if place < words else "---:" for place in range(len(head))]
    lines = [map(_escape, head), marks, *(map(_escape, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    text = re.sub(r"([\\`*_<>|~])", r"\\\1", " ".join(str(text).split()))
    return text.replace("](", "]\\(")


def _code(text: str) -> str:
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"
