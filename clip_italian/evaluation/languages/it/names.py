"""The 1,000 classes of ILSVRC 2012 in Italian.

`nouns.tsv` has for each class its WordNet 3.0 id, the noun with gender and number, synonyms, why a
loanword is used where one is, and notes: where MultiWordNet says otherwise, or where the photos are
said to show something else than the gloss. The names were written for this project by language
models from the English glosses and checked by others that saw only name and glosses; **no person
has reviewed them**. Articles are derived by code.
"""

import csv
import dataclasses
import functools
from pathlib import Path
from typing import Any

from clip_italian.evaluation.languages.it.articles import (
    Gender,
    Number,
    definite,
    indefinite,
    of,
)
from clip_italian.evaluation.languages.pack import (
    BARE,
    ClassName,
    LanguagePack,
    read_templates,
    split_synonyms,
)

_HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Noun:
    """One line of nouns.tsv.

    Attributes:
      class_id: WordNet 3.0 id.
      noun: without article, head noun first where Italian has it so.
      gender: m or f, of the head noun.
      number: s, or p for what Italian names in the plural (trousers, scissors).
      synonyms: other names in use.
      loanword: empty, or why a foreign word is the Italian name.
      note: empty, or a remark.
    """

    class_id: str
    noun: str
    gender: Gender
    number: Number
    synonyms: tuple[str, ...]
    loanword: str
    note: str


@functools.cache
def imagenet_nouns() -> tuple[Noun, ...]:
    """All 1,000, in the order of the class indices."""
    with (_HERE / "nouns.tsv").open(encoding="utf-8", newline="") as file:
        rows: Any = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return tuple(Noun(**row | {"synonyms": split_synonyms(row["synonyms"])}) for row in rows)


@functools.cache
def imagenet_pack() -> LanguagePack:
    """Its forms: `bare` tinca, `indefinite` una tinca, `definite` la tinca, `of` della tinca."""
    classes = tuple(
        ClassName(
            one.class_id,
            {
                BARE: one.noun,
                "indefinite": indefinite(one.noun, one.gender, one.number),
                "definite": definite(one.noun, one.gender, one.number),
                "of": of(one.noun, one.gender, one.number),
            },
            one.synonyms,
        )
        for one in imagenet_nouns()
    )
    lines = (_HERE / "templates.txt").read_text(encoding="utf-8").splitlines()
    return LanguagePack(classes, read_templates(lines))
