"""Numbers of a data card: whether they add up, the funnel line by line, lengths of captions."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

TokenCounter = Callable[[Sequence[str]], Sequence[int]]
_BATCH = 1000  # captions tokenized at once


@dataclasses.dataclass(frozen=True)
class Line:
    """One bar of the funnel.

    Attributes:
      kind: `kept` (what there is at this point), `lost`, `joined` (became part of another row) or
        `skipped` (not asked for).
      label: the step or the reason.
      count: how many.
      left: how many are left after this line; for `kept`, the count itself.
    """

    kind: Literal["kept", "lost", "joined", "skipped"]
    label: str
    count: int
    left: int


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long captions are.

    Attributes:
      unit: `characters`, `words` or `tokens`.
      counts: length → captions of that length, in ascending order. Small however many captions
        there are: k different lengths take captions of k²/2 characters together.
    """

    unit: str
    counts: Mapping[int, int]

    @property
    def captions(self) -> int:
        """How many there are."""
        return sum(self.counts.values())

    @property
    def mean(self) -> float:
        """Arithmetic mean; 0 without captions."""
        total = sum(length * count for length, count in self.counts.items())
        return total / max(self.captions, 1)

    @property
    def longest(self) -> int:
        """Length of the longest caption; 0 without captions."""
        return max(self.counts, default=0)

    def percentile(self, percent: float) -> int:
        """Smallest length that at least this share of all captions does not exceed."""
        wanted, seen = math.ceil(self.captions * percent / 100), 0
        for length, count in self.counts.items():
            seen += count
            if seen >= wanted:
                return length
        return 0

    def facts(self) -> dict[str, Any]:
        """The numbers that the card states."""
        return {
            "captions": self.captions,
            "mean": round(self.mean, 2),
            "median": self.percentile(50),
            "p95": self.percentile(95),
            "p99": self.percentile(99),
            "max": self.longest,
        }


def count_lengths(captions: Iterable[str], tokenizer: TokenCounter | None = None) -> list[Lengths]:
    """Lengths in characters, and in tokens or, without a tokenizer, in words; one pass.

    Args:
      captions: any number of them; at most a thousand are held at a time.
      tokenizer: texts → number of tokens of each.

    Raises:
      ValueError: the tokenizer gave another number of counts than there were texts.
    """
    characters: Counter[int] = Counter()
    pieces: Counter[int] = Counter()
    texts = iter(captions)
    while batch := list(itertools.islice(texts, _BATCH)):
        characters.update(map(len, batch))
        if tokenizer is None:
            counts = [len(text.split()) for text in batch]
        else:
            counts = [int(count) for count in tokenizer(batch)]
        if len(counts) != len(batch):
            raise ValueError(f"tokenizer: {len(counts)} counts for {len(batch)} captions")
        pieces.update(counts)
    unit = "words" if tokenizer is None else "tokens"
    return [
        Lengths(name, dict(sorted(counter.items())))
        for name, counter in (("characters", characters), (unit, pieces))
    ]


def check_summary(summary: Mapping[str, Any]) -> None:
    """Checks that every entry, row and caption is accounted for.

    Entries read are skipped, rejected or became rows. Of each step, what came in is what the step
    before left, and less what was rejected or joined another row it is what came out. The last
    step's rows are the records.

    Args:
      summary: as the card shows it; `entries_of_rows` (a row may stand for several entries),
        `merged_rows`, `sources`, `licenses` and `translators` may be missing.

    Raises:
      ValueError: naming the step and the numbers that do not add up.
    """
    entries = summary["entries"]
    of_rows = entries.get("entries_of_rows", entries["rows"])
    spent = {
        "skipped": _sum("read", entries, "skipped"),
        "rejected": _sum("read", entries, "rejected"),
    }
    _balance("read", "entries", entries["read"], spent, of_rows)
    if entries["rows"] > of_rows:
        raise ValueError(f"read: {entries['rows']} rows are more than their {of_rows} entries")
    left, before = {"rows": entries["rows"]}, "read"
    for step in summary["steps"]:
        name = step["name"]
        for unit in ("rows", "captions"):
            came = step[f"{unit}_in"]
            if left.get(unit, came) != came:
                raise ValueError(f"{name}: {came} {unit} came in, but {before} left {left[unit]}")
            spent = {"rejected": _sum(name, step, f"rejected_{unit}")}
            if unit == "rows":
                spent["merged"] = step.get("merged_rows", 0)
            left[unit] = step[f"{unit}_out"]
            _balance(name, unit, came, spent, left[unit])
        before = name
    for key, unit in (
        ("records", "rows"), ("captions", "captions"), ("sources", "rows"), ("licenses", "rows"),
        ("translators", "rows"),
    ):  # fmt: skip
        if summary.get(key) and unit in left and _sum(key, summary, key) != left[unit]:
            raise ValueError(
                f"{key}: {sum(summary[key].values())} in all, but {before} left {left[unit]} {unit}"
            )


def _sum(where: str, counts: Mapping[str, Any], key: str) -> int:
    for reason, count in counts.get(key, {}).items():
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"{where}: {key} {reason!r} is {count!r}, not a count")
    return sum(counts.get(key, {}).values())


def _balance(where: str, unit: str, came: int, spent: Mapping[str, int], left: int) -> None:
    if min(came, left, *spent.values()) < 0:
        raise ValueError(f"{where}: negative number of {unit}")
    if came - sum(spent.values()) != left:
        said = "".join(f" - {count} {name}" for name, count in spent.items())
        total = came - sum(spent.values())
        raise ValueError(f"{where}: {came} {unit}{said} = {total}, but {left} are left")


def funnel(summary: Mapping[str, Any]) -> dict[str, list[Line]]:
    """Every number of a checked summary, in order: `entries`, `rows` and `captions`.

    Three funnels, since of a large dump in all languages the rows would be too thin to see.
    """
    entries = summary["entries"]
    of_rows = entries.get("entries_of_rows", entries["rows"])
    first = _Funnel("entries read", entries["read"])
    first.take("skipped", entries["skipped"])
    first.take("lost", entries["rejected"])
    first.take("joined", {"entries of the same row": of_rows - entries["rows"]})
    first.keep("rows")
    funnels = {"entries": first.lines}
    for unit in ("rows", "captions"):
        steps = summary["steps"]
        start = (
            steps[0][f"{unit}_in"]
            if steps
            else sum(summary["records" if unit == "rows" else unit].values())
        )
        one = _Funnel(f"{unit} read", start)
        for step in steps:
            one.take("lost", step.get(f"rejected_{unit}", {}))
            if unit == "rows":
                one.take("joined", {"row of the same picture": step.get("merged_rows", 0)})
            one.keep(f"after {step['name']}")
        funnels[unit] = one.lines
    return funnels


class _Funnel:
    def __init__(self, label: str, count: int) -> None:
        self._left = count
        self.lines = [Line("kept", label, count, count)]

    def take(self, kind: Literal["lost", "joined", "skipped"], counts: Mapping[str, int]) -> None:
        """What is gone, most frequent reason first."""
        for reason, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
            if count:
                self._left -= count
                self.lines.append(Line(kind, reason, count, self._left))

    def keep(self, label: str) -> None:
        self.lines.append(Line("kept", label, self._left, self._left))
