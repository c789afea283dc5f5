"""Which captions are worth keeping: length, letters, boilerplate, language, proper nouns."""

import dataclasses
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from clip_italian.config import ConfigError

Checker = Callable[[Sequence[str]], list[str]]

_BATCH = 256  # captions that spaCy tags at a time
_READ_BY_TAGGER = 1000  # characters; the start of a longer caption speaks for all of it

# Language: see `_language_stage`.
_QUICK, _CAREFUL = 60, 120  # characters that the two looks read
_SURE = 0.9  # probability
# By how much another language must be likelier: the less, the longer the text that was read.
_MARGIN, _MARGIN_TIMES_CHARACTERS = 0.6, 8.0
# What a caption in a wrong language is most often in; each more costs time and about 30 MB.
_RIVALS = ("en", "fr", "de", "es", "pt", "it")


@dataclasses.dataclass(frozen=True)
class TextFilters:
    """Which captions are kept."""

    caption_language: str = ""
    """Two-letter code (ISO 639-1) of the captions to keep; empty keeps every language."""
    min_characters: int = 3
    """Shorter captions are dropped; three keeps the shortest nouns ("oca", "ape")."""
    max_characters: int = 1000
    """Longer captions are dropped: paragraphs, twice as long as what a tower reads of them."""
    min_letters: float = 0.5
    """Smallest share of letters among the characters that are not spaces."""
    boilerplate: bool = True
    """Drop captions that say nothing of the picture: file names, URLs, "click here", "logo"."""
    pos_model: str = ""
    """spaCy pipeline (installed package or folder) that finds proper nouns; empty: no check."""
    max_proper_nouns: float = 0.8
    """Captions with at least this share of proper nouns among their words are dropped."""


def make_checker(options: TextFilters) -> Checker:
    """The filters as one function: captions → for each "" or the reason why it is dropped.

    Reasons: `too short`, `too long`, `too few letters`, `boilerplate`, `other language`,
    `proper nouns`. Later, dearer checks see only what the earlier ones left. No caption makes it
    raise. Detector and pipeline cannot be pickled: each process makes its own checker.

    Raises:
      ConfigError: a bound out of range, an unknown language, a pipeline that is missing or gives
        no parts of speech.
    """
    _check_bounds(options)
    stages: list[tuple[str, Callable[[list[str]], list[bool]]]] = []
    if options.caption_language:
        stages.append(("other language", _language_stage(options.caption_language)))
    if options.pos_model:
        stages.append(("proper nouns", _noun_stage(options.pos_model, options.max_proper_nouns)))

    def check(captions: Sequence[str]) -> list[str]:
        reasons = [_cheap_reason(caption, options) for caption in captions]
        for reason, drops in stages:
            left = [row for row, found in enumerate(reasons) if not found]
            # Half a surrogate pair cannot be passed on; every other string can.
            texts = [captions[row].encode(errors="replace").decode() for row in left]
            for row, drop in zip(left, drops(texts), strict=True):
                reasons[row] = reason if drop else ""
        return reasons

    return check


def _check_bounds(options: TextFilters) -> None:
    low, high = options.min_characters, options.max_characters
    if not 0 <= low <= high:
        raise ConfigError(
            f"min_characters = {low} and max_characters = {high} are not allowed; "
            "give 0 <= min_characters <= max_characters"
        )
    if not 0 <= options.min_letters <= 1:
        raise ConfigError(
            f"min_letters = {options.min_letters} is not allowed; give a share, 0 to 1"
        )
    if not 0 < options.max_proper_nouns <= 1:
        raise ConfigError(
            f"max_proper_nouns = {options.max_proper_nouns} is not allowed; give a share above 0, "
            "up to 1; to keep proper nouns leave pos_model empty"
        )


def _cheap_reason(caption: str, options: TextFilters) -> str:
    if len(caption) < options.min_characters:
        return "too short"
    if len(caption) > options.max_characters:
        return "too long"
    if letter_share(caption) < options.min_letters:
        return "too few letters"
    if options.boilerplate and is_boilerplate(caption):
        return "boilerplate"
    return ""


def letter_share(text: str) -> float:
    """Letters among the characters that are not spaces; 0 where there are none.

    Marks count as letters: half of what is written in Hindi or Thai are vowel signs.
    """
    visible = "".join(text.split())
    letters = sum(map(str.isalpha, visible))
    if not visible.isascii():
        letters += sum(unicodedata.category(character)[0] == "M" for character in visible)
    return letters / len(visible) if visible else 0.0


def is_boilerplate(caption: str) -> bool:
    """Whether the whole caption is one of a few phrases that go with pictures of anything.

    English and Italian: names of image files, URLs, "click here", "vedi foto", "l'immagine può
    contenere: ...", copyright and credit lines, and the bare words for "picture" and "logo". A
    caption that only contains such words stays ("il logo della squadra", "foto di un gatto").
    """
    text = " ".join(caption.casefold().replace("’", "'").split())
    return _BOILERPLATE.fullmatch(text.strip(" .,:;!|-–—*[]<>«»\"'")) is not None


# Alternatives for a whole caption: casefolded, white space collapsed, outer punctuation gone.
_IMAGE = r"(?:immagin[ei]|images?|foto(?:grafi[ae])?|photo(?:graph)?s?|pictures?|fig(?:ur[ae])?)"
_STOCK = r"(?:ansa|afp|reuters|lapresse|getty images|shutterstock|istock|flickr|wikimedia commons)"
_NEXT = (  # what one is told to click, in order to do what
    r"(?:qui|per|su|sul|sulla|sull'\w+|la|l'\w+|foto|immagine|ingrandir\w+|vederl[ao]|zoom|"
    r"here|on|to|for|the|image|photo|picture|enlarge|larger?|full|size|view|version)"
)
_WHOLE_CAPTIONS = (
    # names of files, also those that a camera or a phone gives
    r".*\.(?:jpe?g|png|gif|svg|tiff?|webp|bmp|heic|avif|pdf|djvu)",
    r"(?:img|dsc[nf]?|cimg|pict|image|immagine|foto|photo|schermata|screenshot)"
    r"[ _-]*\d[\d _-]*",
    # addresses
    r"(?:(?:fonte|source|da|from|via|link)\b[ :]*)?(?:https?://|www\.)\S*",
    r"[^\s@]+@[^\s@]+\.\w+",
    # what a machine says of a picture
    r"(?:the |l'|la )?(?:image|photo|immagine|foto) (?:may contain|può contenere)\b.*",
    r"(?:may be|può essere|potrebbe essere) (?:an image|a photo|un'immagine|una foto)\b.*",
    # what to do
    rf"(?:fai )?(?:click|clicca|cliccare|clic|tap)(?: {_NEXT})+",
    rf"(?:vedi|guarda|see|view) (?:la |le |l'|il |the )?(?:{_IMAGE}|video|gallery|galleria|"
    r"didascalia|caption|sopra|sotto|above|below)",
    r"(?:leggi|continua|read|scopri)(?: (?:a leggere|tutto|di più|ancora|more))+",
    # rights and sources; "foto: un gatto" is neither
    r"(?:©|\(c\)).*",
    r"copyright(?: ?(?:©|\(c\)|by\b|of\b|di\b|:|\d{4}).*)?",
    r"(?:all rights reserved|tutti i diritti riservati|riproduzione riservata).*",
    rf"(?:{_IMAGE} )?(?:credits?|courtesy|crediti|fonte|source) ?:.*",
    rf"(?:{_IMAGE}[ :/(]*)?{_STOCK}",
    # bare words for a picture, and for none
    rf"(?:il |la |l'|the )?(?:{_IMAGE}|logo|thumbnail|anteprima|placeholder|screenshot)"
    r"[ #n°.]*\d*",
    rf"(?:nessuna?|no|missing) (?:{_IMAGE}|titolo|title|didascalia|caption)"
    r"(?: (?:disponibile|available|found))?",
    rf"{_IMAGE} (?:non |not )?(?:disponibile|available|found|mancante|missing)",
    r"(?:senza|without) (?:titolo|didascalia|title|caption)|untitled|n/?a|null|none|nan",
)
_BOILERPLATE = re.compile(rf"\(?(?:{'|'.join(_WHOLE_CAPTIONS)})\)?")


def proper_noun_share(tags: Sequence[str]) -> float:
    """Share of `PROPN` among Universal Dependencies tags; 0 where no word is left to count.

    Punctuation and white space do not count (`PUNCT`, `SPACE`), as a full stop makes a caption no
    less a name; all else does, numbers and symbols too.
    """
    words = [tag for tag in tags if tag not in ("PUNCT", "SPACE")]
    return words.count("PROPN") / len(words) if words else 0.0


def _language_stage(code: str) -> Callable[[list[str]], list[bool]]:
    """Texts → whether each is in another language; lenient, as sources mostly are what they say.

    A quick look (trigrams, few characters) passes what is surely in the language; a careful look
    (n-grams up to 5) drops what one of six large European languages, or of its own script, is
    clearly likelier to be. `test_language_on_real_captions` holds the rates.
    """
    try:
        import lingua
    except ImportError as error:
        raise ConfigError(
            f"caption_language = {code!r} needs lingua; install it with "
            "pip install 'clip-italian[prep]'"
        ) from error

    known = {language.iso_code_639_1.name.lower(): language for language in lingua.Language.all()}
    if code not in known:
        raise ConfigError(
            f"caption_language = {code!r} is unknown; use one of {', '.join(sorted(known))} "
            "or leave it empty to keep every language"
        )
    wanted = known[code]
    rivals = {known[rival] for rival in _RIVALS}
    for family in (
        lingua.Language.all_with_cyrillic_script(),
        lingua.Language.all_with_arabic_script(),
        lingua.Language.all_with_devanagari_script(),
        {lingua.Language.CHINESE, lingua.Language.JAPANESE},
    ):
        rivals |= family if wanted in family else set()
    builder = lingua.LanguageDetectorBuilder.from_languages(*sorted(rivals | {wanted}, key=str))
    careful = builder.build()  # models are loaded when the first caption needs them
    quick = builder.with_low_accuracy_mode().build()

    def is_other(text: str) -> bool:
        if quick.compute_language_confidence(text[:_QUICK], wanted) >= _SURE:
            return False
        text = text[:_CAREFUL]
        found = {v.language: v.value for v in careful.compute_language_confidence_values(text)}
        likelihood = found.pop(wanted)
        if likelihood == 0 and not any(found.values()):  # another script, or no letters at all
            return any(map(str.isalpha, text))
        margin = min(_MARGIN, _MARGIN_TIMES_CHARACTERS / len(text))
        return max(found.values()) - likelihood > margin

    return lambda texts: [is_other(text) for text in texts]


def _noun_stage(model: str, limit: float) -> Callable[[list[str]], list[bool]]:
    tag = load_tagger(model)
    return lambda texts: [proper_noun_share(tags) >= limit for tags in tag(texts)]


def load_tagger(model: str) -> Callable[[list[str]], Iterator[list[str]]]:
    """Texts → their Universal Dependencies tags, token by token, by a spaCy pipeline.

    Only what gives parts of speech is run. Of a text the first 1,000 characters are tagged.

    Args:
      model: an installed package (`it_core_news_lg`) or a folder with a saved pipeline.

    Raises:
      ConfigError: naming `pos_model`: spaCy or the pipeline is missing, or gives no tags.
    """
    try:
        import spacy
    except ImportError as error:
        raise ConfigError(
            f"pos_model = {model!r} needs spaCy; install it with pip install 'clip-italian[prep]'"
        ) from error
    try:
        nlp: Any = spacy.load(model, exclude=("parser", "ner", "lemmatizer", "senter"))
    except Exception as error:  # nothing there, not a pipeline, or one of another version
        name = "it_core_news_lg" if {"/", os.sep} & set(model) else model
        raise ConfigError(
            f"pos_model = {model!r}: no spaCy pipeline can be loaded from it ({error}); name a "
            f"folder with a saved pipeline, or a package after python -m spacy download {name}"
        ) from error
    givers = ("tok2vec", "transformer", "tagger", "morphologizer", "attribute_ruler")
    nlp.select_pipes(
        enable=[name for name in nlp.pipe_names if nlp.get_pipe_meta(name).factory in givers]
    )
    if not any(token.pos_ for token in nlp("Roma è una città")):
        raise ConfigError(
            f"pos_model = {model!r} gives no parts of speech; it has {nlp.pipe_names}"
        )

    def tag(texts: list[str]) -> Iterator[list[str]]:
        for doc in nlp.pipe((text[:_READ_BY_TAGGER] for text in texts), batch_size=_BATCH):
            yield [token.pos_ for token in doc]

    return tag
