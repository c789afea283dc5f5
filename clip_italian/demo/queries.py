"""What a user writes: cleaned, refused with a helpful line, or taken with a remark."""

import functools
import unicodedata
from typing import Any

import lingua

from clip_italian.demo.words import Words
from clip_italian.hub.load import LoadedModel

MOST_CHARACTERS = 1000  # of a text; more is cut before anything looks at it
# A language is named from this confidence on, and if Italian is less than half as likely: seen to
# tell "red square" from "computer portatile".
_SURE, _TIMES = 0.45, 2.0
_INSIDE_WORDS = dict.fromkeys(map(ord, "\u00ad\u200e\u200f\u2060\ufeff"))
_SHOWN = 5  # unknown words that a remark names
_LANGUAGES = (
    lingua.Language.ITALIAN,
    lingua.Language.ENGLISH,
    lingua.Language.FRENCH,
    lingua.Language.GERMAN,
    lingua.Language.SPANISH,
)


class QueryError(ValueError):
    """A text that cannot be searched for; says so in the words of the page."""


def clean(text: str | None) -> str:
    """In NFC, without control characters, each run of white space one space."""
    # Copied from a page, a word may hold soft hyphens and marks of direction: no end of a word.
    joined = (text or "").translate(_INSIDE_WORDS)
    composed = unicodedata.normalize("NFC", joined[:MOST_CHARACTERS])
    kept = (c if unicodedata.category(c)[0] != "C" else " " for c in composed)
    return " ".join("".join(kept).split())


def check(text: str | None, model: LoadedModel, words: Words, example: str) -> list[str]:
    """Remarks about a text: too long, another language, words without a token of their own.

    Raises:
      QueryError: empty, or without any letter or digit.
    """
    query = clean(text)
    if not query:
        raise QueryError(words.empty_query.format(example=example))
    if not any(c.isalnum() for c in query):
        raise QueryError(words.no_letters.format(text=query[:40]))
    return [*_length(query, model, words), *_language(query, words), *_unknown(query, model, words)]


def _length(query: str, model: LoadedModel, words: Words) -> list[str]:
    ids: Any = model.tokenizer(query)["input_ids"]
    count, most = len(ids), model.config.data.max_length
    return [words.cut.format(count=count, most=most)] if count > most else []


def _language(query: str, words: Words) -> list[str]:
    if len(query.split()) < 2:  # a single word may be of any language
        return []
    confidences = _detector().compute_language_confidence_values(query)
    found = {one.language: one.value for one in confidences}
    best = max(found, key=found.__getitem__)
    if found[best] < max(_SURE, _TIMES * found[lingua.Language.ITALIAN]):
        return []
    return [words.maybe_english if best == lingua.Language.ENGLISH else words.maybe_other]


def _unknown(query: str, model: LoadedModel, words: Words) -> list[str]:
    tokenizer = model.tokenizer
    unknown = [word for word in query.split() if tokenizer.unk_token in tokenizer.tokenize(word)]
    shown = ", ".join(dict.fromkeys(word[:30] for word in unknown[:_SHOWN]))
    return [words.unknown_words.format(words=shown)] if unknown else []


@functools.cache
def _detector() -> lingua.LanguageDetector:
    return lingua.LanguageDetectorBuilder.from_languages(*_LANGUAGES).build()
