"""Captions as found → captions as records hold them: one line of clean Unicode text."""

import html
import itertools
import re
import unicodedata
from html.entities import html5
from typing import Literal

_PASSES = 8  # a text that still changes then was escaped by a machine, over and over
_LONG = 1000  # characters: from here on the marks on one letter are limited
_MARKS = 30  # on one letter; the bound of Unicode's Stream-Safe Text Format (UAX #15)

# Only with its semicolon: HTML would also read "dolce &notte" as "dolce ¬te".
_ENTITY = re.compile(r"&(?:#[0-9]{1,8}|#[xX][0-9a-fA-F]{1,7}|[A-Za-z][A-Za-z0-9]{1,31});")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Control characters that are no white space, soft hyphen, marks of direction, zero-width spaces
# and word joiners, byte order mark, annotation marks, noncharacters.
_INVISIBLE = re.compile(
    "[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff]"
)
# Zero-width joiners and non-joiners shape Persian, Indic scripts and emoji. After a Latin letter,
# a space, punctuation or another of them (and at the start) they only make equal words differ.
_IDLE_JOINERS = re.compile("(^|[\0-\u024f\u1e00-\u206f])[\u200c\u200d]+")
# Not after another stop or a space: "..." stays, and what is left ends in no stop to drop.
_FINAL_STOP = re.compile(r"(?<=[^\s.…])\s?\.\Z")


def normalize(text: str, final_stop: Literal["keep", "drop"] = "keep") -> str:
    """One line of text in Unicode NFC, without entities and invisible characters; case is kept.

    HTML entities become what they stand for, also when escaped several times over (with their
    semicolon only); control, zero-width and direction characters go (joiners stay in scripts and
    emoji that need them); runs of white space become one space. Half a surrogate pair becomes
    U+FFFD, so the result can always be encoded. Normalising twice changes nothing more.

    Args:
      text: any string; nothing raises.
      final_stop: "drop" takes off one full stop at the end, with a space before it, also that of
        an abbreviation ("ecc."); an ellipsis ("...", "…") stays.
    """
    for _ in range(_PASSES):
        cleaned = _clean(text)
        if cleaned == text:
            break
        text = cleaned
    else:  # without ampersands there is nothing left to unescape
        text = text.replace("&", " ")
        for _ in range(_PASSES):
            text = _clean(text)
    return _FINAL_STOP.sub("", text) if final_stop == "drop" else text


def _clean(text: str) -> str:
    if "&" in text:
        text = _ENTITY.sub(_unescape, text)
    if _SURROGATE.search(text):  # whole pairs become the character they stand for
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = " ".join(_INVISIBLE.sub("", text).split())
    text = _IDLE_JOINERS.sub(r"\1", text)
    return unicodedata.normalize("NFC", _limit_marks(text))


def _unescape(match: re.Match[str]) -> str:
    entity = match[0]
    return html.unescape(entity) if entity[1] == "#" else html5.get(entity[1:], entity)


def _limit_marks(text: str) -> str:
    """Cuts endless runs of combining marks: the time to sort them is quadratic in their length."""
    if len(text) <= _LONG:
        return text
    runs = itertools.groupby(text, lambda character: unicodedata.combining(character) > 0)
    return "".join(
        "".join(itertools.islice(run, _MARKS)) if marks else "".join(run) for marks, run in runs
    )
