"""Rating translations by hand: `draw` makes what annotators fill in, `report` sums it up."""

import bisect
import csv
import dataclasses
import hashlib
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from clip_italian.config import ConfigError
from clip_italian.data.records import INDEX_FILE, SPLITS, Record, open_split, parse_record
from data_prep.pages import picture_uri, render_html
from data_prep.rate_report import SCALE, report

__all__ = ["draw", "report"]

COLUMNS = ("pair", "original", "translation", "grade")
_SIDE = 320  # longer side of an embedded picture, in pixels
_README = """# Rating translations

{pairs} captions and their translations, the same for all {annotators} annotators, each in an order
of its own. Annotators do not talk about them before all are done.

Open `annotator-1.html` (or the file with your number) in a browser: it needs no network. Or fill
in the column `grade` of `annotator-1.csv`; a pair may stay without a grade.

| grade | meaning |
|---|---|
{scale}

Then: `clip-italian prepare rate report annotator-1.csv annotator-2.csv ...`

`pairs.json` says where each pair comes from.
"""


@dataclasses.dataclass(frozen=True)
class Pair:
    """One caption to be rated.

    Attributes:
      pair: short name, the same for all annotators; equal pairs have equal names.
      original: the caption as it was found.
      translation: what was made of it.
      source: source of the record.
      image_id: of the record.
      translator: who or what translated.
      picture: JPEG in base64, as a data URI.
    """

    pair: str
    original: str
    translation: str
    source: str
    image_id: str
    translator: str
    picture: str


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What was drawn; `str()` says what to do with it."""

    pairs: tuple[Pair, ...]
    annotators: int
    folder: Path

    def __str__(self) -> str:
        """One line per file kind."""
        return (
            f"{len(self.pairs):,} pairs for {self.annotators} annotators in {self.folder}\n"
            "give each annotator one annotator-N.html (or .csv); README.md there says how to rate"
        )


def draw(
    *,
    data_dir: str = "data",
    source: str,
    out: Path,
    pairs: int = 100,
    annotators: int = 3,
    seed: int = 0,
    language: str = "it",
) -> Drawing:
    """Draws captions with their translations; writes a page and a table for each annotator.

    Every translated record is equally likely; of its captions one is drawn. Equal records and
    seed give equal pairs.

    Args:
      data_dir: folder of all sources.
      source: the source to draw from, train and validation alike.
      out: new folder for pages, tables and `pairs.json`.
      pairs: captions to rate.
      annotators: people who rate them; each gets all pairs, in an order of their own.
      seed: of the drawing.
      language: of the translations (a BCP 47 tag), for screen readers.

    Raises:
      ConfigError: naming the field: fewer translated records than pairs, a folder in use.
    """
    for name, value in (("pairs", pairs), ("annotators", annotators)):
        if value < 1:
            raise ConfigError(f"{name} = {value} is not allowed; use at least 1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out = {str(out)!r} is not empty, it may hold ratings; name another one")
    drawn = tuple(itertools.islice(_translated(data_dir, source, seed), pairs))
    if len(drawn) < pairs:
        raise ConfigError(
            f"pairs = {pairs} is too many: {source!r} has {len(drawn)} records with translated "
            "captions; draw fewer, or prepare it with translation"
        )
    out.mkdir(parents=True, exist_ok=True)
    draw_id = hashlib.blake2b("".join(p.pair for p in drawn).encode(), digest_size=6).hexdigest()
    for number in range(1, annotators + 1):
        order = np.random.default_rng([seed, number]).permutation(len(drawn))
        own = [drawn[place] for place in order]
        name = f"annotator-{number}"
        (out / f"{name}.html").write_text(_page(own, name, draw_id, language), encoding="utf-8")
        (out / f"{name}.csv").write_bytes(_table(own))
    scale = "\n".join(f"| {grade} | {meaning} |" for grade, meaning in SCALE.items())
    readme = _README.format(pairs=f"{pairs:,}", annotators=annotators, scale=scale)
    (out / "README.md").write_text(readme, encoding="utf-8")
    described = [{k: v for k, v in dataclasses.asdict(p).items() if k != "picture"} for p in drawn]
    facts = {"format_version": 1, "source": source, "seed": seed, "scale": SCALE}
    text = json.dumps(facts | {"pairs": described}, indent=1, ensure_ascii=False)
    (out / "pairs.json").write_text(text + "\n", encoding="utf-8")
    return Drawing(drawn, annotators, out)


def _translated(data_dir: str, source: str, seed: int) -> Iterator[Pair]:
    """Translated records in random order, one caption each."""
    rng = np.random.default_rng(seed)
    for record in _shuffled(data_dir, source, rng):
        # Not aligned: the captions were written anew, or a source brought originals of its own.
        if record.original_captions and len(record.original_captions) == len(record.captions):
            choice = int(rng.integers(len(record.captions)))
            if record.original_captions[choice]:  # others of the record may be native
                yield _pair(record, record.original_captions[choice], record.captions[choice])


def _shuffled(data_dir: str, source: str, rng: np.random.Generator) -> Iterator[Record]:
    index_file = Path(data_dir) / source / INDEX_FILE
    counts = json.loads(index_file.read_text())["records"] if index_file.is_file() else {}
    names = [split for split in SPLITS if counts.get(split)]
    files = [open_split(data_dir, source, split) for split in names or SPLITS]
    ends = list(itertools.accumulate(map(len, files)))
    for place in map(int, rng.permutation(ends[-1])):
        which = bisect.bisect_right(ends, place)
        start = ends[which - 1] if which else 0
        yield parse_record(files[which].read([place - start])[0])


def _pair(record: Record, original: str, translation: str) -> Pair:
    parts = json.dumps([record.source, record.image_id, original, translation])
    # A letter in front: spreadsheets read 12e45678 as a number and write something else.
    name = "p" + hashlib.blake2b(parts.encode(), digest_size=5).hexdigest()
    uri = picture_uri(record.image, _SIDE)
    return Pair(name, original, translation, record.source, record.image_id, record.translator, uri)


def _page(pairs: Sequence[Pair], name: str, draw_id: str, language: str) -> str:
    shown = [
        {key: getattr(pair, key) for key in ("pair", "original", "translation", "picture")}
        for pair in pairs
    ]
    return render_html(
        "rate.html.j2", pairs=shown, name=name, draw=draw_id, language=language, scale=SCALE.items()
    )


def _table(pairs: Sequence[Pair]) -> bytes:
    """CSV that spreadsheets read as UTF-8, because of the mark at its start."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for pair in pairs:
        writer.writerow([pair.pair, _no_formula(pair.original), _no_formula(pair.translation), ""])
    return text.getvalue().encode("utf-8-sig")


def _no_formula(text: str) -> str:
    """A text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
