"""What annotators' grades say: means, shares and agreement.

The scale is that of the authors of CLIP-Italian (README of github.com/clip-italian/clip-italian),
put in our words. They had 100 captions rated by 3 of them: mean 3.78, Gwet's AC1 with ordinal
weights 0.858.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from clip_italian.config import ConfigError
from data_prep.agreement import Agreement, gwet_ac

SCALE = {
    1: "the meaning is lost, or the sentence cannot be understood",
    2: "one gets the idea, but something is wrong",
    3: "good, though a native speaker might object to some of the wording",
    4: "a good translation",
}
LOWEST = 10  # pairs with the lowest means, kept in the report
Texts = Mapping[str, Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class RatingReport:
    """What the grades say; `str()` is the table.

    Attributes:
      facts: the contents of the JSON file.
      file: where that is.
    """

    facts: Mapping[str, Any]
    file: Path

    def __str__(self) -> str:
        """A table of all numbers, two of the paper to compare with, and the file's place."""
        facts = self.facts
        lines = [
            f"{facts['ratings']:,} ratings of {facts['pairs']:,} pairs by "
            f"{len(facts['annotators'])} annotators, {facts['missing']:,} missing",
            f"{'mean':<28}{facts['mean']:>8.3f}",
            f"{'standard deviation':<28}{_number(facts['standard_deviation'])}",
        ]
        lines += [
            f"{f'grade {grade}':<28}{100 * share:>7.1f}%"
            for grade, share in facts["shares"].items()
        ]
        lines += [
            f"{_cut('mean of ' + one['name'], 28):<28}{_number(one['mean'])}   "
            f"({one['ratings']:,} ratings)"
            for one in facts["annotators"]
        ]
        for name, key in (
            ("AC1, unweighted", "ac1"),
            ("AC1, ordinal weights (AC2)", "ac1_ordinal"),
        ):
            one = facts[key]
            interval = (
                f"95% interval {one['low']:.3f} to {one['high']:.3f}"
                if one["low"] is not None
                else "no interval: a single pair"
            )
            lines.append(f"{name:<28}{one['coefficient']:>8.3f}   ({interval})")
        lines.append("(CLIP-Italian's own, DeepL: mean 3.78, AC1 with ordinal weights 0.858)")
        return "\n".join([*lines, f"all numbers are in {self.file}"])


def report(files: tyro.conf.Positional[tuple[Path, ...]], *, out: str = "") -> RatingReport:
    """Mean grade, shares and agreement of filled-in tables.

    Args:
      files: the annotators' tables (CSV), two or more of the same drawing.
      out: where the numbers go, as JSON; empty takes `rating.json` beside the first table.

    Raises:
      ConfigError: naming `files`, the table and its line, and what is wrong there.
    """
    if len(files) < 2:
        raise ConfigError(f"files: {len(files)} given; agreement needs the tables of two or more")
    if len({path.resolve() for path in files}) < len(files):
        raise ConfigError("files: the same table is given twice")
    tables: list[dict[str, float]] = []
    texts: dict[str, dict[str, str]] = {}
    for path in files:
        grades, found = read_table(path)
        if tables and not grades.keys() & texts.keys():
            raise ConfigError(f"files: {path} rates other pairs than {files[0]}")
        tables.append(grades)
        texts = {**texts, **{pair: row for pair, row in found.items() if pair not in texts}}
    ratings = np.array([[grades.get(pair, math.nan) for grades in tables] for pair in texts])
    if not (~np.isnan(ratings)).sum(1).max(initial=0) > 1:
        raise ConfigError("files: no pair has two grades, so there is no agreement to measure")
    facts = _facts(ratings, [str(path) for path in files], texts)
    target = Path(out) if out else files[0].parent / "rating.json"
    text = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)
    target.write_text(text + "\n", encoding="utf-8")
    return RatingReport(facts, target)


def read_table(path: Path) -> tuple[dict[str, float], dict[str, dict[str, str]]]:
    """One annotator's table: pair → grade (NaN where none is given), and pair → its row.

    Commas, semicolons or tabs, as spreadsheets write them; columns other than `pair` and `grade`
    are for people.

    Raises:
      ConfigError: naming the table and the line.
    """
    if not path.is_file():
        raise ConfigError(f"files: {path} is no file")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"files: {path}, line {line}: not UTF-8; save it as UTF-8") from None
    head = text.partition("\n")[0]
    rows = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True
    )
    grades: dict[str, float] = {}
    texts: dict[str, dict[str, str]] = {}
    try:
        if not {"pair", "grade"} <= set(rows.fieldnames or ()):
            raise ConfigError(f"files: {path}, line 1: needs the columns 'pair' and 'grade'")
        for row in rows:
            where = f"files: {path}, line {rows.line_num}"
            if None in row or None in row.values():
                raise ConfigError(f"{where}: not as many columns as the first line")
            if not any(value.strip() for value in row.values()):
                continue
            pair, grade = row["pair"].strip(), row["grade"].strip()
            if not pair or pair in grades:
                what = f"pair {pair} is there twice" if pair else "no name of a pair"
                raise ConfigError(f"{where}: {what}")
            if grade and grade not in {str(one) for one in SCALE}:
                raise ConfigError(
                    f"{where}: grade {grade[:40]!r}; use 1, 2, 3, 4 or leave it empty"
                )
            grades[pair] = float(grade) if grade else math.nan
            texts[pair] = row
    except csv.Error as error:
        after = rows.line_num  # the last line of the last good row
        raise ConfigError(f"files: {path}, line {after + 1}: {error}") from error
    return grades, texts


def _facts(ratings: np.ndarray, files: list[str], texts: Texts) -> dict[str, Any]:
    """Everything for the JSON file; `ratings` is float [pairs, annotators], NaN where missing."""
    given = ratings[~np.isnan(ratings)]
    names = [Path(file).stem for file in files]
    names = names if len(set(names)) == len(names) else files
    annotators = []
    for name, file, column in zip(names, files, ratings.T, strict=True):
        own = column[~np.isnan(column)]
        mean = float(own.mean()) if len(own) else None
        annotators.append({"name": name, "file": file, "ratings": len(own), "mean": mean})
    rated = [
        {
            "pair": pair,
            "original": texts[pair].get("original", ""),
            "translation": texts[pair].get("translation", ""),
            "grades": [None if math.isnan(grade) else int(grade) for grade in row],
            "mean": float(row[~np.isnan(row)].mean()),
        }
        for pair, row in zip(texts, ratings, strict=True)
        if not np.isnan(row).all()
    ]
    grades = list(SCALE)
    return {
        "format_version": 1,
        "pairs": len(ratings),
        "ratings": len(given),
        "missing": int(np.isnan(ratings).sum()),
        "mean": float(given.mean()),
        "standard_deviation": float(given.std(ddof=1)),
        "shares": {str(grade): float((given == grade).mean()) for grade in grades},
        "annotators": annotators,
        "ac1": _finite(gwet_ac(ratings, grades, "identity")),
        "ac1_ordinal": _finite(gwet_ac(ratings, grades, "ordinal")),
        "scale": {str(grade): meaning for grade, meaning in SCALE.items()},
        "lowest": sorted(rated, key=lambda one: one["mean"])[:LOWEST],
    }


def _finite(agreement: Agreement) -> dict[str, float | int | None]:
    """JSON has no NaN."""
    values = dataclasses.asdict(agreement)
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def _number(value: float | None) -> str:
    return f"{'none':>8}" if value is None else f"{value:>8.3f}"


def _cut(text: str, length: int) -> str:
    return text if len(text) < length else text[: length - 2] + "…"
