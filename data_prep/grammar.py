"""Italian captions for the scenes of the embedded sample, from a small grammar.

Articles are chosen by the sound of the word that follows them (un albero, un grande albero, uno
specchio, un piccolo specchio), adjectives agree in gender and number, and prepositions merge with
the article (sul prato, accanto allo zaino, a sinistra degli alberi). Every caption names kind and
colour of every group; size, texture, count, place and relation are left out now and then.
"""

import re
from typing import NamedTuple

import numpy as np

from data_prep.scenes import Group, Scene


class Noun(NamedTuple):
    """A noun with its genders ("m" or "f"), which differ for uovo: un uovo, due uova rosse."""

    singular: str
    plural: str
    gender: str
    plural_gender: str


NOUNS = {
    singular: Noun(singular, plural, gender, plural_gender)
    for singular, plural, gender, plural_gender in (
        ("albero", "alberi", "m", "m"),
        ("anatra", "anatre", "f", "f"),
        ("barca", "barche", "f", "f"),
        ("casa", "case", "f", "f"),
        ("gnomo", "gnomi", "m", "m"),
        ("ombrello", "ombrelli", "m", "m"),
        ("pesce", "pesci", "m", "m"),
        ("sciarpa", "sciarpe", "f", "f"),
        ("specchio", "specchi", "m", "m"),
        ("stella", "stelle", "f", "f"),
        ("uovo", "uova", "m", "f"),
        ("zaino", "zaini", "m", "m"),
    )
}
# Masculine singular → feminine singular, masculine plural, feminine plural.
ADJECTIVES = {
    "rosso": ("rossa", "rossi", "rosse"),
    "giallo": ("gialla", "gialli", "gialle"),
    "verde": ("verde", "verdi", "verdi"),
    "blu": ("blu", "blu", "blu"),
    "viola": ("viola", "viola", "viola"),
    "rosa": ("rosa", "rosa", "rosa"),
    "bianco": ("bianca", "bianchi", "bianche"),
    "nero": ("nera", "neri", "nere"),
    "grande": ("grande", "grandi", "grandi"),
    "piccolo": ("piccola", "piccoli", "piccole"),
}
# Ways to name a place: what goes before, preposition, noun, gender, plural.
PLACE_PHRASES = {
    "prato": (("", "su", "prato", "m", False), ("", "su", "erba", "f", False)),
    "stanza": (("", "in", "stanza", "f", False), ("davanti ", "a", "piastrelle", "f", True)),
    "cielo": (("", "in", "cielo", "m", False), ("", "tra", "nuvole", "f", True)),
    "mare": (("", "su", "mare", "m", False), ("", "su", "onde", "f", True)),
    "montagne": (("davanti ", "a", "montagne", "f", True), ("davanti ", "a", "monti", "m", True)),
    "steccato": (("davanti ", "a", "steccato", "m", False), ("", "contro", "steccato", "m", False)),
}
MERGED = {"a": "a", "da": "da", "di": "de", "in": "ne", "su": "su"}  # stem before the article
TEXTURE_PHRASES = {"tinta unita": "in tinta unita", "righe": "a righe", "pois": "a pois"}
NUMBERS = {2: "due", 3: "tre"}
INVERSE = {"sinistra": "destra", "destra": "sinistra", "sopra": "sotto", "sotto": "sopra"}


def indefinite(word: str, gender: str) -> str:
    """Singular indefinite article with the space it takes: "un ", "uno ", "una " or "un'"."""
    if gender == "f":
        return "un'" if _vowel(word) else "una "
    return "uno " if _impure(word) else "un "


def definite(word: str, gender: str, plural: bool) -> str:
    """Definite article with the space it takes, for the word that follows it."""
    if gender == "f":
        singular = "l'" if _vowel(word) else "la "
        return "le " if plural else singular
    if plural:
        return "gli " if _vowel(word) or _impure(word) else "i "
    if _vowel(word):
        return "l'"
    return "lo " if _impure(word) else "il "


def articulated(preposition: str, word: str, gender: str, plural: bool) -> str:
    """Preposition merged with the definite article: "sul ", "nella ", "dell'", "agli ", ...

    Prepositions that do not merge stay apart: "sopra il ", "sotto l'".
    """
    article = definite(word, gender, plural)
    if preposition not in MERGED:
        return f"{preposition} {article}"
    stem = MERGED[preposition]
    if article == "il ":
        return f"{stem}l "
    if article.startswith("l"):  # lo, la, l', le double their l
        return f"{stem}l{article}"
    return f"{stem}{article}"  # i, gli


def adjective(word: str, gender: str, plural: bool) -> str:
    """The adjective (given in the masculine singular) in agreement with gender and number."""
    forms = (word, *ADJECTIVES[word])
    return forms[(gender == "f") + 2 * plural]


def _vowel(word: str) -> bool:
    return word[0].lower() in "aeiouhàèéìòù"


def _impure(word: str) -> bool:
    """Whether the word takes lo, gli, uno: s + consonant, z, gn, ps, pn, x, y, i + vowel."""
    return re.match(r"s[^aeiouàèéìòù]|z|gn|ps|pn|x|y|i[aeou]", word.lower()) is not None


class NounPhrase(NamedTuple):
    """A noun phrase without its article: "piccole case rosse a righe", and what governs it."""

    words: str
    gender: str
    count: int

    def some(self) -> str:
        """Indefinite: una casa rossa, due case rosse."""
        if self.count == 1:
            return indefinite(self.words, self.gender) + self.words
        return f"{NUMBERS[self.count]} {self.words}"

    def the(self, preposition: str = "", numbered: bool = True) -> str:
        """Definite: la casa rossa, le due case rosse, alle due case rosse, alle case rosse."""
        plural = self.count > 1
        words = f"{NUMBERS[self.count]} {self.words}" if plural and numbered else self.words
        if preposition:
            return articulated(preposition, words, self.gender, plural) + words
        return definite(words, self.gender, plural) + words


def noun_phrase(group: Group, *, size: str = "", texture: bool = False) -> NounPhrase:
    """A group as a noun phrase: kind and colour always, more on request.

    Args:
      group: the objects.
      size: where the word for the size stands: "before" or "after" the noun, "" for nowhere.
      texture: whether to name the texture.
    """
    noun, plural = NOUNS[group.kind], group.count > 1
    gender = noun.plural_gender if plural else noun.gender
    size_word = adjective(group.size, gender, plural)
    parts = [
        size_word if size == "before" else "",
        noun.plural if plural else noun.singular,
        f"{size_word} e" if size == "after" else "",
        adjective(group.color, gender, plural),
        TEXTURE_PHRASES[group.texture] if texture else "",
    ]
    return NounPhrase(" ".join(filter(None, parts)), gender, group.count)


def place_phrase(place: str, variant: int) -> str:
    """Where the scene is: sul prato, nella stanza, davanti allo steccato, ..."""
    lead, preposition, word, gender, plural = PLACE_PHRASES[place][variant]
    return f"{lead}{articulated(preposition, word, gender, plural)}{word}"


def beside(relation: str, other: NounPhrase, *, known: bool) -> str:
    """Where something lies relative to `other`: a sinistra di una casa, sopra l'albero.

    Args:
      relation: one of `data_prep.scenes.RELATIONS`.
      other: the group it is compared with.
      known: definite article in place of the indefinite one or the number.
    """
    across = relation in ("sinistra", "destra")
    lead, preposition = (f"a {relation} ", "di") if across else ("", relation)
    if known:
        return lead + other.the(preposition, numbered=False)
    return f"{lead}{preposition} {other.some()}"


def captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Three to five different captions of a scene, in random order."""
    sentences = _one_group(scene, rng) if len(scene.groups) == 1 else _two_groups(scene, rng)
    chosen = rng.permutation(len(sentences))[: rng.integers(3, 6)]
    return [sentences[i][0].upper() + sentences[i][1:] for i in chosen]


def _detailed(group: Group, rng: np.random.Generator) -> NounPhrase:
    """With at most one detail: two make captions long and stiff."""
    detail = rng.random()
    if detail < 0.4:
        return noun_phrase(group, size="before" if detail < 0.2 else "after")
    return noun_phrase(group, texture=detail < (0.45 if group.texture == "tinta unita" else 0.8))


def _one_group(scene: Scene, rng: np.random.Generator) -> list[str]:
    """All paraphrases of a scene with one group; no two are equal."""
    (group,) = scene.groups
    some = [_detailed(group, rng).some() for _ in range(6)]
    place = [place_phrase(scene.place, i) for i in rng.integers(2, size=5)]
    there_is, one_sees = ("c'è", "si vede") if group.count == 1 else ("ci sono", "si vedono")
    return [
        f"{some[0]} {place[0]}",
        f"{place[1]} {there_is} {some[1]}",
        f"{there_is} {some[2]} {place[2]}",
        f"{place[3]} {one_sees} {some[3]}",
        f"un'immagine con {some[4]}",
        f"un disegno di {some[5]} {place[4]}",
    ]


def _two_groups(scene: Scene, rng: np.random.Generator) -> list[str]:
    """All paraphrases of a scene with two groups, either of them first; no two are equal."""
    groups, relation = scene.groups, scene.relation
    if rng.random() < 0.5:
        groups, relation = groups[::-1], INVERSE[relation]
    one = [_detailed(groups[0], rng).some() for _ in range(6)]
    two = [_detailed(groups[1], rng) for _ in range(4)]
    place = [place_phrase(scene.place, i) for i in rng.integers(2, size=5)]
    known_one, known_two = noun_phrase(groups[0]), noun_phrase(groups[1])
    across = relation in ("sinistra", "destra")
    there = f"a {INVERSE[relation]}" if across else INVERSE[relation]
    near = "accanto" if across else "vicino"
    is_at = "è" if groups[0].count == 1 else "sono"
    return [
        f"{one[0]} {beside(relation, two[0], known=False)}",
        f"{place[0]}, {one[1]} {beside(relation, known_two, known=True)}",
        f"{one[2]} con {there} {two[1].some()}",
        f"{known_one.the()} {is_at} {beside(relation, known_two, known=True)}, {place[1]}",
        f"{place[2]} ci sono {one[3]} e {known_two.some()}",
        f"{place[3]} si vedono {known_one.some()} e {two[2].some()}",
        f"{one[4]} {near} {known_two.the('a')}, {place[4]}",
        f"un'immagine con {one[5]} e {two[3].some()}",
    ]
