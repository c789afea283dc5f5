"""Rows per second and memory of reading WIT: language selection, parsing and text filters.

    python benchmarks/wit_rows.py --rows 2000000 --real_data FOLDER

Writes a gzipped file in WIT's format (17 columns, 108 languages, 2.8% Italian, rows of 1 to 2 KB,
one row in 1,000 broken) that depends on the flags alone. FOLDER holds `text/corpus_it.txt.gz`,
Italian captions a line; without it captions are made up, and the language filter is left out.
Each measurement is a process of its own. Prints a table and one line of JSON; exits with 1 if an
entry is not accounted for.
"""

import argparse
import functools
import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isal import igzip

from data_prep.rows import Reject, Row, Skip
from data_prep.store import batched
from data_prep.wit import COLUMNS, Wit

LATIN = "aeiouàèìòùbcdfghlmnprstvz"
ALPHABETS = (
    LATIN,
    LATIN,
    LATIN,
    "абвгдежзийклмнопрстуфхя",
    "אבגדהוזחטילמנ",
    "的一是不了人我在有他这",
)
ITALIAN = 0.028
LANGUAGES = ["it", *("".join(pair) for pair in itertools.product("abcdefgh", "klmnopqrstuvwx"))][
    :108
]
POOL = 12_000  # rows without their URL, from which the file is drawn
FAULTS = ("bad UTF-8", "NUL character", "wrong number of columns", "blank line", "line too long")
FAULT_SHARE = 0.001
LONG = 5 << 20  # bytes
MODES = ("read", "filters", "language")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows of the file")
    parser.add_argument("--real_data", type=Path, help="folder with text/corpus_it.txt.gz")
    parser.add_argument("--measure", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "wit.tsv.gz"
        expected, size = write_wit(file, arguments.rows, captions(arguments.real_data))
        packed = file.stat().st_size
        print(f"{arguments.rows:,} rows, {size / 1e9:.2f} GB, {packed / 1e9:.2f} GB gzipped")
        results = {}
        for mode in MODES if arguments.real_data else MODES[:2]:
            command = [sys.executable, __file__, "--measure", mode, "--file", str(file)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            results[mode] = json.loads(done.stdout)
    show(arguments.rows, results)
    print(json.dumps({"rows": arguments.rows, "expected": expected, "results": results}))
    wrong = [mode for mode, found in results.items() if found["counts"] != expected]
    if wrong:
        raise SystemExit(f"counts of {wrong} are not as expected")


def captions(real_data: Path | None) -> list[str]:
    """Italian captions, or texts that look like some."""
    if real_data:
        with igzip.open(real_data / "text/corpus_it.txt.gz", "rt", encoding="utf-8") as file:
            return [line.rstrip("\n") for line in itertools.islice(file, 50_000)]
    rng = random.Random(1)
    return [words(rng, LATIN, rng.randint(4, 16)) for _ in range(5000)]


def words(rng: random.Random, alphabet: str, count: int) -> str:
    """Made-up words, a few of them frequent, so that texts shrink about as real ones do."""
    known = vocabulary(alphabet)
    return " ".join(known[int(len(known) * rng.random() ** 3)] for _ in range(count))


@functools.cache
def vocabulary(alphabet: str) -> list[str]:
    """Words of one to twelve letters, the frequent ones first and short."""
    rng = random.Random(3)
    sizes = sorted(rng.triangular(1, 12, 7) for _ in range(4000))
    return ["".join(rng.choices(alphabet, k=round(size))) for size in sizes]


def write_wit(path: Path, rows: int, texts: list[str]) -> tuple[dict[str, int], int]:
    """The file; returns what a reader must find, and the size before compression in bytes."""
    rng = random.Random(2)
    others = pool(rng, LANGUAGES[1:], [])
    italian = pool(rng, ["it"], texts)
    counts: Counter[str] = Counter()
    size = 0
    with igzip.open(path, "wb", compresslevel=1) as file:
        file.write("\t".join(COLUMNS).encode() + b"\n")
        for batch in batched(range(rows), 10_000):
            lines = []
            for number in batch:
                is_italian = rng.random() < ITALIAN
                before, after = (italian if is_italian else others)[int(rng.random() * POOL)]
                line = b"%b%x/%d.jpg%b" % (before, number % 256, number, after)
                kind = "row" if is_italian else "other language"
                if rng.random() < FAULT_SHARE:
                    kind, line = broken(rng, kind, line)
                counts[kind] += 1
                lines.append(line)
            block = b"\n".join(lines) + b"\n"
            size += len(block)
            file.write(block)
    return dict(sorted(counts.items())), size


def pool(rng: random.Random, languages: list[str], texts: list[str]) -> list[tuple[bytes, bytes]]:
    """Rows, each cut where the end of its image URL goes."""
    rows = []
    for number in range(POOL):
        language = languages[int(len(languages) * rng.random() ** 2)]  # a few large, many small
        alphabet = ALPHABETS[languages.index(language) % len(ALPHABETS)]
        title, short = words(rng, alphabet, 2), words(rng, alphabet, rng.randint(3, 14))
        fields = dict.fromkeys(COLUMNS, "") | {
            "language": language,
            "page_url": f"https://{language}.wikipedia.org/wiki/{number}_{words(rng, LATIN, 1)}",
            "image_url": "https://upload.wikimedia.org/wikipedia/commons/\0",
            "page_title": title,
            "section_title": words(rng, alphabet, 2),
            "hierarchical_section_title": f"{title} / {words(rng, alphabet, 2)}",
            "caption_reference_description": texts[number % len(texts)] if texts else short,
            "caption_attribution_description": f'English: "{words(rng, LATIN, 12)}"',
            "mime_type": "image/jpeg",
            "original_height": "1200",
            "original_width": "1600",
            "is_main_image": "false",
            "attribution_passes_lang_id": "true",
            "page_changed_recently": "true",
            "context_page_description": words(rng, alphabet, rng.randint(30, 110)),
            "context_section_description": words(rng, alphabet, rng.randint(20, 110)),
        }
        before, _, after = "\t".join(fields.values()).partition("\0")
        rows.append((before.encode(), after.encode()))
    return rows


def broken(rng: random.Random, kind: str, line: bytes) -> tuple[str, bytes]:
    """A broken row, and what a reader must say of it; 1 in 200 of them is of 5 MB."""
    fault = FAULTS[-1] if rng.random() < 0.005 else rng.choice(FAULTS[:-1])
    if fault == "blank line":
        return fault, b""
    if fault == "wrong number of columns":
        return fault, line + b"\t"
    if fault == "line too long":
        return fault, line + b"x" * LONG
    line = line[:-5] + (b"\xff" if fault == "bad UTF-8" else b"\0") + line[-5:]
    return (fault if kind == "row" else kind), line  # other languages are not looked into


def measure(mode: str, path: str) -> dict[str, Any]:
    """Reads the file once in this process.

    Args:
      mode: `read` parses; `filters` normalises and filters captions, too; `language` checks their
        language as well.
      path: of the file.

    Returns:
      Seconds on the clock and of CPU, peak memory in MB, and what was found.
    """
    source = Wit((path,))
    counts: Counter[str] = Counter()
    kept = 0
    start, cpu = time.perf_counter(), time.process_time()
    check = make_check(mode)
    for batch in batched(rows_of(source, path, counts), 1000):
        kept += check([caption for row in batch for caption in row.captions])
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "captions_kept": kept,
        "counts": dict(sorted(counts.items())),
    }


def rows_of(source: Wit, path: str, counts: Counter[str]) -> Iterator[Row]:
    """The rows; all entries are counted."""
    for file in source.inputs():
        for item in source.read(file):
            if isinstance(item, Row):
                counts["row"] += item.entries
                yield item
            elif isinstance(item, Reject | Skip):
                counts[item.reason] += item.entries


def make_check(mode: str) -> Any:
    """Captions → how many of them stay."""
    if mode == "read":
        return len
    from data_prep.filters import TextFilters, make_checker
    from data_prep.text import normalize

    checker = make_checker(TextFilters(caption_language="it" if mode == "language" else ""))
    return lambda texts: checker([normalize(text) for text in texts]).count("")


def show(rows: int, results: dict[str, Any]) -> None:
    """A table."""
    print(f"{'':>10} {'rows/s':>10} {'rows/CPU-s':>10} {'peak MB':>8} {'captions kept':>14}")
    for mode, found in results.items():
        print(
            f"{mode:>10} {rows / found['seconds']:>10,.0f} {rows / found['cpu_seconds']:>10,.0f} "
            f"{found['peak_mb']:>8,} {found['captions_kept']:>14,}"
        )


if __name__ == "__main__":
    main()
