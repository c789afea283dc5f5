"""Italian articles, derived from a noun's first sounds, its gender and its number.

As grammars give it (L. Serianni, *Grammatica italiana*, chapter IV): *il* and *un* before
consonants; *lo* and *uno* before s + consonant, z, gn, ps, pn, x, y and i + vowel, and before
groups that no Italian word begins with (pt, ct, ts, ...); an apostrophe before vowels, h being
silent.
"""

import re
from typing import Literal

Gender = Literal["m", "f"]
Number = Literal["s", "p"]

_VOWEL = re.compile(r"h?(?:[aeouàèéòóùú]|i(?![aeiou])|ì)", re.IGNORECASE)
# What takes lo, uno, gli: groups that do not begin an Italian syllable, and half-vowels.
_LO = re.compile(
    r"s[bcdfghjklmnpqrtvwxz]|z|gn|x|y|p[nst]|c[tnz]|t[sz]|mn|ft|bd|h?i[aeou]",
    re.IGNORECASE,
)


def indefinite(noun: str, gender: Gender, number: Number) -> str:
    """The noun with *un, uno, una, un'*; in the plural *dei, degli, delle*."""
    if number == "p":
        return of(noun, gender, number)
    if gender == "f":
        return f"un'{noun}" if _VOWEL.match(noun) else f"una {noun}"
    return f"uno {noun}" if _takes_lo(noun) else f"un {noun}"


def definite(noun: str, gender: Gender, number: Number) -> str:
    """The noun with *il, lo, la, l', i, gli, le*."""
    article = _definite_article(noun, gender, number)
    return f"{article}{noun}" if article.endswith("'") else f"{article} {noun}"


def of(noun: str, gender: Gender, number: Number) -> str:
    """The noun with *di* and its article: *del, dello, della, dell', dei, degli, delle*."""
    joined = {
        "il": "del", "lo": "dello", "la": "della", "l'": "dell'", "i": "dei", "gli": "degli",
        "le": "delle",
    }  # fmt: skip
    article = joined[_definite_article(noun, gender, number)]
    return f"{article}{noun}" if article.endswith("'") else f"{article} {noun}"


def _definite_article(noun: str, gender: Gender, number: Number) -> str:
    if gender == "f":
        return "le" if number == "p" else "l'" if _VOWEL.match(noun) else "la"
    if number == "p":
        return "gli" if _takes_lo(noun) or _VOWEL.match(noun) else "i"
    return "l'" if _VOWEL.match(noun) else "lo" if _takes_lo(noun) else "il"


def _takes_lo(noun: str) -> bool:
    return bool(_LO.match(noun))
