"""Lines as careless programs and broken disks leave them, for the readers of text files."""

import random
from collections import Counter
from collections.abc import Callable

from data_prep.rows import Reject, Row, Skip

KINDS = {
    "good": 8000,
    "bad UTF-8": 500,
    "NUL character": 400,
    "ragged": 400,
    "quotes": 400,
    "duplicate": 150,
    "carriage return": 60,
    "byte order mark": 40,
    "blank": 38,
    "one megabyte": 10,
    "line too long": 2,
}  # 10,000 in all


def hostile_lines(make: Callable[[int, str], str], separator: str) -> list[tuple[str, bytes]]:
    """10,000 kinds and lines, in an order that a seed decides; the first is a good one.

    Args:
      make: number and a piece of text that must be in the row's last field → a good line.
      separator: what a line is cut at to make it ragged.
    """
    rng = random.Random(7)
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    rng.shuffle(kinds)
    first = kinds.index("good")
    kinds[0], kinds[first] = kinds[first], kinds[0]
    lines: list[tuple[str, bytes]] = []
    for number, kind in enumerate(kinds):
        sizes = {"one megabyte": 1 << 20, "line too long": 5 << 20}
        text = {"quotes": '5" tall, "so', "NUL character": "a", "bad UTF-8": "è"}.get(kind, "")
        line = make(number, text or "abcd" * (sizes.get(kind, 0) // 4)).encode()
        place = rng.randrange(len(line) * 2 // 3, len(line))  # behind the first fields
        if kind == "bad UTF-8":
            line = line[:place] + rng.choice([b"\xff", b"\xc3(", b"\xed\xa0\x80"]) + line[place:]
        elif kind == "NUL character":
            line = line[:place] + b"\0" + line[place:]
        elif kind == "ragged":
            line = line[: line.rindex(separator.encode())]
        elif kind == "duplicate":
            line = next(data for earlier, data in reversed(lines) if earlier == "good")
        elif kind == "carriage return":
            line += b"\r"
        elif kind == "byte order mark":
            line = b"\xef\xbb\xbf" + line
        lines.append((kind, b"" if kind == "blank" else line))
    return lines


def outcomes(items: list[Row | Reject | Skip]) -> tuple[dict[int, str], Counter[str]]:
    """Line → "row" or the reason of its reject; reason → entries skipped."""
    of_line: dict[int, str] = {}
    skipped: Counter[str] = Counter()
    for item in items:
        if isinstance(item, Skip):
            skipped[item.reason] += item.entries
        else:
            assert item.line not in of_line and item.entries == 1
            of_line[item.line] = item.reason if isinstance(item, Reject) else "row"
    return of_line, skipped


def entries(items: list[Row | Reject | Skip]) -> int:
    """What the items stand for: all entries of their input."""
    return sum(item.entries for item in items)
