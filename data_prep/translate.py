"""Captions into another language, by an open model or by DeepL; nothing is translated twice.

Each translation is kept in a cache on disk. A batch is committed to it as soon as it is there, so
that a run that is killed, at any moment, loses the one batch in flight: `translate_batch` texts
that a model had not finished, or one request (at most 50 texts) that DeepL may have counted
without our seeing the answer. All others are never asked for again.
"""

import dataclasses
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from tqdm import tqdm

from clip_italian.config import ConfigError

MAX_CHARACTERS = 10_000  # of a text for DeepL; written as JSON at most 12 bytes each


@dataclasses.dataclass(frozen=True)
class TranslateOptions:
    """Whether and how captions are translated."""

    translate: str = ""
    """Source and target language of captions to translate (`en:it`); empty translates none."""
    translator: Literal["marian", "deepl"] = "marian"
    """A Marian model (opus-mt) on the devices here, or DeepL: paid, its key in DEEPL_AUTH_KEY."""
    marian_model: str = ""
    """Hub id or folder of the Marian model; empty takes Helsinki-NLP/opus-mt-<source>-<target>."""
    marian_revision: str = ""
    """Hub revision (branch, tag or commit) of the model; empty takes the default branch."""
    beams: int = 4
    """Beams of the Marian model's search; 1 is greedy: faster, somewhat worse."""
    translate_batch: int = 128
    """Texts at a time through the Marian model, on all devices together."""
    formality: Literal["default", "more", "less", "prefer_more", "prefer_less"] = "default"
    """DeepL: how formal; `prefer_` where the target language may not know the difference."""
    glossary: str = ""
    """DeepL: id of a glossary; give it a new id when it changes, as the cache goes by the id."""
    price_per_million: float = 0.0
    """DeepL: what you pay for a million characters, to show the cost; 0 shows characters only."""
    max_paid_characters: int = 500_000
    """DeepL: with more characters than this to pay for, ask first (or stop, without a terminal)."""
    yes: bool = False
    """Pay for any number of characters without asking."""
    translation_cache: str = "~/.cache/clip_italian/translations.sqlite"
    """File (on a local disk) that keeps translations; converted models lie beside it."""

    @property
    def pair(self) -> tuple[str, str]:
        """Source and target language. Raises `ConfigError` for anything but `xx:yy`."""
        language = r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,4})?"
        match = re.fullmatch(f"({language}):({language})", self.translate)
        if match is None or match[1].lower() == match[2].lower():
            raise ConfigError(
                f"translate = {self.translate!r} is not allowed; give two languages, like en:it"
            )
        return match[1], match[2]


class Translator(Protocol):
    """What translates between two languages.

    Attributes:
      name: for records: who translated (`marian:<model>@<commit>`, `deepl`).
      identity: all that the words of a translation depend on, the languages apart.
    """

    name: str
    identity: str

    def translate(self, texts: Sequence[str]) -> Iterator[dict[str, str]]:
        """Yields text → translation, batch by batch, each as soon as it is there.

        Args:
          texts: all different, none blank, valid Unicode.
        """
        ...


class TranslationError(RuntimeError):
    """A translator gave up; what it had translated is in the cache."""


@dataclasses.dataclass(frozen=True)
class TranslationCounts:
    """`texts` = `blank` + `repeated` + `cached` + `translated`; counts of two runs can be added.

    Attributes:
      texts: asked for.
      blank: without a word; they stay as they are.
      repeated: equal to another of the same call.
      cached: known from before.
      translated: by the translator, now.
      characters: of the texts that were translated now (what DeepL is paid for).
    """

    texts: int = 0
    blank: int = 0
    repeated: int = 0
    cached: int = 0
    translated: int = 0
    characters: int = 0

    def __add__(self, other: "TranslationCounts") -> "TranslationCounts":
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return TranslationCounts(*(a + b for a, b in zip(mine, theirs, strict=True)))


class TranslationCache:
    """Translations of one translator and language pair in an SQLite file shared with others.

    Several processes may use the file at once. A translation that is there is never replaced.
    """

    def __init__(self, path: str | Path, identity: str, pair: tuple[str, str]) -> None:
        """Opens the file, or makes it; waits up to a minute while another process writes.

        Raises:
          ConfigError: it cannot be opened, or is something else.
        """
        self._path = Path(path).expanduser()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self._path, timeout=60, isolation_level=None)
            self._file.executescript(_SCHEMA)
            key = (identity, *pair)
            self._file.execute("INSERT OR IGNORE INTO contexts VALUES (NULL, ?, ?, ?)", key)
            where = "identity = ? AND source = ? AND target = ?"
            [self._context] = self._file.execute(f"SELECT id FROM contexts WHERE {where}", key)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"translation_cache = {str(path)!r}: {error}") from error

    def get_many(self, texts: Iterable[str]) -> dict[str, str]:
        """Those of the texts that are known, with their translations."""
        query = "SELECT translation FROM translations WHERE context = ? AND text = ?"
        found = ((t, self._file.execute(query, (*self._context, t)).fetchone()) for t in texts)
        return {text: row[0] for text, row in found if row is not None}

    def put_many(self, translations: Mapping[str, str]) -> None:
        """Keeps text → translation, all or none; on disk when it returns."""
        rows = [(*self._context, text, made) for text, made in translations.items()]
        try:
            with self._file:  # commits, or rolls back
                self._file.execute("BEGIN IMMEDIATE")
                self._file.executemany("INSERT OR IGNORE INTO translations VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            error.add_note(f"while writing to {self._path}")
            raise

    def close(self) -> None:
        self._file.close()


# FULL: an answer that was paid for is worth one fsync a batch.
_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS contexts (
  id INTEGER PRIMARY KEY, identity TEXT NOT NULL, source TEXT NOT NULL, target TEXT NOT NULL,
  UNIQUE (identity, source, target));
CREATE TABLE IF NOT EXISTS translations (
  context INTEGER NOT NULL, text TEXT NOT NULL, translation TEXT NOT NULL,
  PRIMARY KEY (context, text)) WITHOUT ROWID;
"""


def translate_texts(
    texts: Sequence[str],
    translator: Translator,
    cache: TranslationCache,
    progress: Callable[[int], object] = lambda count: None,
) -> tuple[list[str], TranslationCounts]:
    """Texts → their translations, in order; only those that are not in the cache are translated.

    A translation may be empty: a translator may find nothing to say.

    Args:
      texts: valid Unicode, of any length; blank ones stay as they are.
      translator: as `open_translator` returns it.
      cache: of that translator, as `open_cache` returns it.
      progress: called with the number of different texts that are done since its last call.

    Raises:
      TranslationError: the translator gave up; call again to go on where it stopped.
    """
    wanted = dict.fromkeys(text for text in texts if text.strip())
    known = cache.get_many(wanted)
    progress(len(known))
    missing = [text for text in wanted if text not in known]
    blank = sum(not text.strip() for text in texts)
    counts = TranslationCounts(
        texts=len(texts), blank=blank, repeated=len(texts) - blank - len(wanted),
        cached=len(known), translated=len(missing), characters=_characters(missing),
    )  # fmt: skip
    for batch in translator.translate(missing) if missing else ():
        cache.put_many(batch)  # before anything else can go wrong
        known.update(batch)
        progress(len(batch))
    return [known[text] if text.strip() else text for text in texts], counts


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
      texts: different ones.
      cached: those of them that are in the cache.
      characters: of the others.
    """

    texts: int
    cached: int
    characters: int


def estimate(texts: Iterable[str], cache: TranslationCache) -> Estimate:
    """Counts what is missing from the cache, before anything is paid for; reads `texts` once."""
    seen: set[int] = set()  # hashes: millions of texts need not be held
    cached = characters = 0
    for text in texts:
        if text.strip() and hash(text) not in seen:
            seen.add(hash(text))
            if cache.get_many([text]):
                cached += 1
            else:
                characters += _characters([text])
    return Estimate(len(seen), cached, characters)


def _characters(texts: Iterable[str]) -> int:
    return sum(min(len(text), MAX_CHARACTERS) for text in texts)


def confirm_cost(estimated: Estimate, options: TranslateOptions) -> None:
    """Says what DeepL will count; above `max_paid_characters` asks, or refuses.

    Raises:
      ConfigError: not confirmed, or nobody to ask.
    """
    if options.translator != "deepl":
        return
    cost = ""
    if options.price_per_million:
        cost = f", at your price {estimated.characters * options.price_per_million / 1e6:,.2f}"
    what = (
        f"{estimated.characters:,} characters to pay for at DeepL{cost} "
        f"({estimated.texts - estimated.cached:,} texts; {estimated.cached:,} are in the cache)"
    )
    tqdm.write(what, file=sys.stderr)
    if options.yes or estimated.characters <= options.max_paid_characters:
        return
    if sys.stdin.isatty() and input(f"{what}. Go on? [y/N] ").strip().lower() in ("y", "yes"):
        return
    raise ConfigError(
        f"max_paid_characters = {options.max_paid_characters:,}: {what}; "
        "raise it, or give --yes, to pay for them"
    )


def open_translator(options: TranslateOptions) -> Translator:
    """Loads the model, or makes the client.

    Raises:
      ConfigError: naming the field, or the environment variable that lacks the key.
    """
    source, target = options.pair
    if options.translator == "deepl":
        from data_prep.deepl import DeepLTranslator

        return DeepLTranslator(options)
    for field in ("beams", "translate_batch"):
        if getattr(options, field) < 1:
            raise ConfigError(f"{field} = {getattr(options, field)} is not allowed; give 1 or more")
    for field, default in {"formality": "default", "glossary": ""}.items():
        if getattr(options, field) != default:
            raise ConfigError(f"{field} is for translator = 'deepl' only; leave it out")
    from data_prep.marian import MarianTranslator

    return MarianTranslator(
        options.marian_model or f"Helsinki-NLP/opus-mt-{source}-{target}",
        revision=options.marian_revision,
        target=target,
        beams=options.beams,
        batch=options.translate_batch,
        store=Path(options.translation_cache).expanduser().parent / "marian",
    )


def open_cache(options: TranslateOptions, translator: Translator) -> TranslationCache:
    """The cache of one translator and language pair. Raises `ConfigError` as it does."""
    return TranslationCache(options.translation_cache, translator.identity, options.pair)
