"""The step that translates: shards in order, one translator, one cache, one progress bar."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from data_prep import translate
from data_prep.captions import translate_captions
from data_prep.filters import TextFilters
from data_prep.store import read_table


class Translation:
    """An open translator with its cache.

    Attributes:
      name: for records: who translated.
      identity: all that the translations depend on.
    """

    def __init__(self, options: translate.TranslateOptions) -> None:
        """Loads the model or makes the client; raises `ConfigError` as `open_translator` does."""
        self._options = options
        self._translator = translate.open_translator(options)
        self._cache = translate.open_cache(options, self._translator)
        self.name = self._translator.name
        self.identity = [self._translator.identity, *options.pair]

    def run(
        self,
        calls: Sequence[tuple[Path, Path]],
        filters: TextFilters,
        final_stop: Literal["keep", "drop"],
    ) -> None:
        """Translates shards: (rows, folder to be made) of each.

        Raises:
          ConfigError: it would cost more than allowed.
          TranslationError: the translator gave up; what it had done is kept.
        """
        if not calls:
            return
        translate.confirm_cost(translate.estimate(_texts(calls), self._cache), self._options)
        counts = translate.TranslationCounts()
        with tqdm(total=sum(1 for _ in _texts(calls)), desc="translation", unit="caption") as bar:

            def translated(texts: list[str]) -> list[str]:
                nonlocal counts
                end = bar.n + len(texts)
                done, found = translate.translate_texts(
                    texts, self._translator, self._cache, bar.update
                )
                bar.update(end - bar.n)  # repeated and blank ones
                counts += found
                bar.set_postfix_str(f"{counts.cached:,} from the cache")
                return done

            for rows, folder in calls:
                translate_captions(rows, folder, translated, self.name, filters, final_stop)


def _texts(calls: Sequence[tuple[Path, Path]]) -> Iterator[str]:
    for rows, _ in calls:
        for row in read_table(rows, ["captions"]):
            yield from row["captions"]
