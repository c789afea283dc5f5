"""Texts: cleaned, refused, or remarked upon."""

import pytest

from clip_italian.demo import queries
from clip_italian.demo.queries import QueryError, check, clean
from clip_italian.demo.words import ENGLISH, ITALIAN

EXAMPLE = "una stella blu"


@pytest.fixture
def remarks(answers):
    return lambda text: check(text, answers.model, ITALIAN, EXAMPLE)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  una\tstella \n blu ", EXAMPLE),
        ("perche\u0301", "perché"),
        ("a\x00b\u200bc\x1b[31m", "a b c [31m"),
        ("una stel\u00adla\u200e blu\ufeff", EXAMPLE),
        (None, ""),
        ("x" * 5000, "x" * queries.MOST_CHARACTERS),
    ],
)
def test_texts_are_cleaned(text, cleaned):
    assert clean(text) == cleaned


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\x00", None])
def test_an_empty_text_is_helped_with_an_example(remarks, text):
    with pytest.raises(QueryError) as refused:
        remarks(text)
    assert str(refused.value) == ITALIAN.empty_query.format(example=EXAMPLE)


@pytest.mark.parametrize("text", ["???", "🐕🐈", "…", "—"])
def test_a_text_without_words_is_refused(remarks, text):
    with pytest.raises(QueryError, match="non contiene parole"):
        remarks(text)


@pytest.mark.parametrize("text", [EXAMPLE, "gatto", "un cerchio rosso", "tre quadrati verdi"])
def test_plain_italian_is_taken_without_a_word(remarks, text):
    assert remarks(text) == []


@pytest.mark.parametrize("text", ["a dog on the beach", "a red square", "two green fishes"])
def test_english_is_remarked(remarks, text):
    assert remarks(text) == [ITALIAN.maybe_english]


def test_another_language_is_remarked(remarks, answers):
    assert ITALIAN.maybe_other in remarks("dos perros grandes en la playa")
    english = check("dos perros grandes en la playa", answers.model, ENGLISH, EXAMPLE)
    assert ENGLISH.maybe_other in english


@pytest.mark.parametrize("text", ["pizza", "computer", "un selfie in vacanza", "New York di notte"])
def test_borrowed_words_are_no_english(remarks, text):
    assert remarks(text) == []


def test_a_long_text_is_told_where_it_is_cut(remarks):
    most = 20  # `max_length` of the tiny model, with [CLS] and [SEP]
    assert remarks(" ".join(["blu"] * (most - 2))) == []
    said = remarks(" ".join(["blu"] * (most - 1)))
    assert said[0] == ITALIAN.cut.format(count=most + 1, most=most)


def test_words_without_a_token_are_named(remarks):
    said = remarks("una stella 犬 blu")
    assert ITALIAN.unknown_words.format(words="犬") in said
