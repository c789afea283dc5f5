import functools
import gzip
import itertools
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from clip_italian.config import ConfigError
from clip_italian.evaluation.languages.it import articles
from clip_italian.evaluation.languages.it.names import imagenet_nouns, imagenet_pack
from clip_italian.evaluation.languages.pack import read_pack

ROOT = Path(__file__).resolve().parents[2]
HUNGARIAN = Path(__file__).parent / "hungarian"
REAL = Path(os.environ.get("CLIP_ITALIAN_REAL_DATA", ""))
needs_real_data = pytest.mark.skipif(
    "CLIP_ITALIAN_REAL_DATA" not in os.environ, reason="no real data at hand"
)


@pytest.mark.parametrize(
    ("noun", "gender", "number", "indefinite", "definite", "of"),
    [
        ("gatto", "m", "s", "un gatto", "il gatto", "del gatto"),
        ("tinca", "f", "s", "una tinca", "la tinca", "della tinca"),
        ("squalo", "m", "s", "uno squalo", "lo squalo", "dello squalo"),
        ("serpente", "m", "s", "un serpente", "il serpente", "del serpente"),
        ("scimmia", "f", "s", "una scimmia", "la scimmia", "della scimmia"),
        ("zaino", "m", "s", "uno zaino", "lo zaino", "dello zaino"),
        ("gnu", "m", "s", "uno gnu", "lo gnu", "dello gnu"),
        ("psicologo", "m", "s", "uno psicologo", "lo psicologo", "dello psicologo"),
        ("xilofono", "m", "s", "uno xilofono", "lo xilofono", "dello xilofono"),
        ("yorkshire", "m", "s", "uno yorkshire", "lo yorkshire", "dello yorkshire"),
        ("iato", "m", "s", "uno iato", "lo iato", "dello iato"),
        ("iena", "f", "s", "una iena", "la iena", "della iena"),
        ("orso", "m", "s", "un orso", "l'orso", "dell'orso"),
        ("aquila", "f", "s", "un'aquila", "l'aquila", "dell'aquila"),
        ("istrice", "m", "s", "un istrice", "l'istrice", "dell'istrice"),
        ("hamburger", "m", "s", "un hamburger", "l'hamburger", "dell'hamburger"),
        ("whippet", "m", "s", "un whippet", "il whippet", "del whippet"),
        ("occhiali", "m", "p", "degli occhiali", "gli occhiali", "degli occhiali"),
        ("sci", "m", "p", "degli sci", "gli sci", "degli sci"),
        ("jeans", "m", "p", "dei jeans", "i jeans", "dei jeans"),
        ("forbici", "f", "p", "delle forbici", "le forbici", "delle forbici"),
    ],
)
def test_articles_follow_the_first_sounds(noun, gender, number, indefinite, definite, of):
    assert articles.indefinite(noun, gender, number) == indefinite
    assert articles.definite(noun, gender, number) == definite
    assert articles.of(noun, gender, number) == of


def test_the_italian_pack_names_a_thousand_different_classes():
    nouns = imagenet_nouns()
    assert len(nouns) == 1000
    assert len({one.noun.lower() for one in nouns}) == 1000
    assert [one.class_id for one in nouns] == sorted(one.class_id for one in nouns)
    for one in nouns:
        assert re.fullmatch(r"n\d{8}", one.class_id)
        assert one.gender in ("m", "f") and one.number in ("s", "p"), one
        assert re.fullmatch(r"[\w'-]+( [\w'-]+)*", one.noun), one
        first = re.split(r"[ ']", one.noun)[0].lower()
        assert first not in ("il", "lo", "la", "l", "i", "gli", "le", "un", "uno", "una"), one
        assert one.noun not in one.synonyms


def test_italian_prompts_agree():
    pack = imagenet_pack()
    tench = next(i for i, one in enumerate(pack.classes) if one.class_id == "n01440764")
    prompts = pack.prompts(tench)
    assert len(prompts) == len(pack.templates) == len(set(prompts)) >= 30
    assert prompts[:3] == ["una foto di una tinca", "una tinca", "tinca"]
    assert "una foto della tinca" in prompts and "ecco la tinca" in prompts
    shades = next(one for one in pack.classes if one.forms["bare"] == "occhiali da sole")
    assert shades.forms["indefinite"] == "degli occhiali da sole"


def test_another_language_is_a_folder():
    pack = read_pack(HUNGARIAN)
    assert len(pack.classes) == 20
    assert pack.classes[0].synonyms == ("cica",)
    horse = next(i for i, one in enumerate(pack.classes) if one.forms["bare"] == "ló")
    assert pack.prompts(horse) == [
        "egy ló fotója", "ezen a képen egy lovat látunk", "itt van a ló"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        ("class_id\tbare\na\tx\n", "{accusative}\n", r"template '\{accusative\}' must name one"),
        ("class_id\tbare\na\tx\n", "no form\n", "template 'no form' must name one form"),
        ("class_id\tbare\na\tx\na\ty\n", "{bare}\n", "class a occurs twice"),
        ("class_id\tbare\na\t \n", "{bare}\n", "class a has no text for"),
        ("class_id\tof\na\tx\n", "{of}\n", "'bare' among them"),
        ("class_id\tbare\na\tx\ty\n", "{bare}\n", "line 2: as many columns"),
        ("class_id\tbare\na\n", "{bare}\n", "line 2: as many columns"),
        ("id\tbare\na\tx\n", "{bare}\n", "`class_id` among them"),
        ("class_id\tbare\n", "{bare}\n", "at least one class"),
        ("class_id\tbare\na\tx\n", "# only a note\n", "one template"),
        (None, "{bare}\n", "cannot be read"),
    ],
)
def test_what_is_no_pack_is_refused(tmp_path, classes, templates, message):
    if classes is not None:
        (tmp_path / "classes.tsv").write_text(classes)
    (tmp_path / "templates.txt").write_text(templates)
    with pytest.raises(ConfigError, match=message):
        read_pack(tmp_path)


def articled_nouns(path):
    """(article as written, noun, gender, number, definite) where a determiner precedes a noun."""
    for sentence in path.read_text(encoding="utf-8").split("\n\n"):
        lines = [line.split("\t") for line in sentence.splitlines() if not line.startswith("#")]
        words = [line for line in lines if line[0].isdigit()]
        for article, noun in itertools.pairwise(words):
            told = noun[5] + "|" + article[5]
            gender = {"Fem": "f", "Masc": "m"}.get(_feature(told, "Gender"))
            number = {"Sing": "s", "Plur": "p"}.get(_feature(told, "Number"))
            if "PronType=Art" in article[5] and noun[3] == "NOUN" and gender and number:
                definite = "Definite=Def" in article[5]
                if definite or number == "s":
                    yield article[1].replace("’", "'"), noun[1], gender, number, definite


def _feature(features, name):
    found = re.search(rf"{name}=(\w+)", features)
    return found and found[1]


@pytest.mark.real_data
@needs_real_data
def test_articles_against_annotated_text():
    wrong, total = Counter(), 0
    for part in ("dev", "test"):
        path = REAL / "text" / f"it_isdt-ud-{part}.conllu"
        for article, noun, gender, number, definite in articled_nouns(path):
            make = articles.definite if definite else articles.indefinite
            written = f"{article}{noun}" if article.endswith("'") else f"{article} {noun}"
            total += 1
            if make(noun, gender, number).lower() != written.lower():
                wrong[written] += 1
    print(f"articles: {total - wrong.total()} of {total} equal, {dict(wrong)} differ")
    assert total > 2000 and wrong.total() <= 0.01 * total
    # Six older spellings without elision, and a French name.
    assert set(wrong) == {
        "una interpretazione", "la indennità", "una indennità", "la elezione", "la eleggibilità",
        "una evoluzione", "le sein",
    }  # fmt: skip


def published_rows():
    rows = json.loads((REAL / "imagenet" / "classes_it.json").read_text(encoding="utf-8"))
    assert [row["wnid"] for row in rows] == [one.class_id for one in imagenet_nouns()]
    return rows


def disagreements():
    """Number of classes that MultiWordNet names, and our nouns with which it disagrees."""
    known, found = 0, []
    for row, one in zip(published_rows(), imagenet_nouns(), strict=True):
        lemmas = {lemma.lower() for lemma in row.get("omw_it") or []}
        known += bool(lemmas)
        if lemmas and not lemmas & {name.lower() for name in (one.noun, *one.synonyms)}:
            found.append(one)
    return known, found


@pytest.mark.real_data
@needs_real_data
def test_nouns_against_multiwordnet():
    known, differing = disagreements()
    print(f"MultiWordNet: {known - len(differing)} of {known} agree")
    assert known == 628 and len(differing) <= 0.1 * known
    for one in differing:
        assert "omw lemma" in one.note, one


# Words of Italian dictionaries that English spells alike: no loanwords from it.
ALIKE = {
    "agama", "trilobite", "echidna", "nematode", "maltese", "zebra", "gorilla", "gondola",
    "missile", "oboe", "ocarina", "radio", "trombone", "banana", "carbonara", "pizza",
}  # fmt: skip


@pytest.mark.real_data
@needs_real_data
def test_english_names_carry_the_reason_for_the_loanword():
    alike = set()
    for row, one in zip(published_rows(), imagenet_nouns(), strict=True):
        if one.noun.lower() == row["label_en"].lower() and not one.loanword:
            alike.add(one.noun)
    loanwords = sum(bool(one.loanword) for one in imagenet_nouns())
    print(f"loanwords with a reason: {loanwords}; spelt alike in both languages: {len(alike)}")
    assert alike == ALIKE


def head(one):
    """The word that has the gender: Italian puts it first."""
    return one.noun.lower().split()[0]


ARTICLES_OF = {
    "m": "un uno il lo i gli del dello dei degli al allo ai agli dal dallo dai dagli nel nello nei"
    " negli sul sullo sui sugli",
    "f": "una un' la le della delle alla alle dalla dalle nella nelle sulla sulle",
}
GENDER_OF = {article: gender for gender, all_ in ARTICLES_OF.items() for article in all_.split()}
# The other sense's gender wins in the corpus: a boa may be a buoy (f), a slot has no machine (m).
HOMONYMS = {"boa costrittore", "boa di piume", "slot machine"}


@functools.cache
def corpus_genders():
    """Head noun → Counter of the genders that the articles before it show."""
    heads = {head(one) for one in imagenet_nouns()}
    found = {noun: Counter() for noun in heads}
    with gzip.open(REAL / "text" / "corpus_it.txt.gz", "rt", encoding="utf-8") as file:
        for line in file:
            words = re.findall(r"\w+'|[\w-]+", line.lower().replace("’", "'"))
            for article, noun in itertools.pairwise(words):
                if article in GENDER_OF and noun in heads:
                    found[noun][GENDER_OF[article]] += 1
    return found


@pytest.mark.real_data
@needs_real_data
def test_gender_against_articles_in_text():
    known = [one for one in imagenet_nouns() if corpus_genders()[head(one)]]
    wrong = set()
    for one in known:
        genders = corpus_genders()[head(one)]
        if genders[one.gender] * 2 <= genders.total():
            wrong.add(one.noun)
    print(f"gender: text knows {len(known)} classes, conflicts {wrong}")
    assert len(known) > 500 and wrong == HOMONYMS


LEXICON = Path("/usr/share/apertium/apertium-spa-ita/ita-spa.automorf.bin")
needs_lexicon = pytest.mark.skipif(
    shutil.which("lt-proc") is None or not LEXICON.exists(),
    reason="Debian's packages lttoolbox and apertium-spa-ita are not installed",
)


@functools.cache
def lexicon_readings():
    """Head noun → its readings in apertium-spa-ita: (m, f or mf; sg, pl or sp)."""
    heads = sorted({head(one) for one in imagenet_nouns()})
    command = ["lt-proc", "-w", str(LEXICON)]
    done = subprocess.run(
        command, input="\n".join(heads), capture_output=True, text=True, check=True
    )
    found = {noun: set() for noun in heads}
    for noun, readings in re.findall(r"\^([^/^]+)/([^$]*)\$", done.stdout):
        if noun in found:
            found[noun] |= set(re.findall(r"<n><(m|f|mf)><(sg|pl|sp)>", readings))
    return found


@needs_lexicon
def test_gender_and_number_against_a_lexicon():
    known, wrong = 0, []
    for one in imagenet_nouns():
        readings = lexicon_readings()[head(one)]
        number = {"s": "sg", "p": "pl"}[one.number]
        known += bool(readings)
        if readings and not any(
            one.gender in gender and told in (number, "sp") for gender, told in readings
        ):
            wrong.append((one.noun, one.gender, one.number, readings))
    print(f"gender and number: the lexicon knows {known} classes, conflicts {wrong}")
    assert known > 400 and not wrong


def test_a_synonym_names_no_other_class():
    nouns = {one.noun.lower() for one in imagenet_nouns()}
    shared = {name for one in imagenet_nouns() for name in one.synonyms if name.lower() in nouns}
    # Each has two senses in Italian: altar and macaw, shelf and shop, bow tie and dog, pipe and
    # syringe.
    assert shared == {"ara", "libreria", "papillon", "siringa"}


def section(title):
    text = (ROOT / "docs" / "class_names.md").read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.real_data
@needs_real_data
def test_the_page_lists_every_disagreement_with_multiwordnet():
    rows = re.findall(
        r"^\| (n\d{8}) \| (.+) \| (.+) \|$", section("Where MultiWordNet says otherwise"), re.M
    )
    assert rows == [(one.class_id, one.noun, one.note) for one in disagreements()[1]]


@pytest.mark.real_data
@needs_real_data
@needs_lexicon
def test_the_page_lists_every_noun_without_evidence_of_its_gender():
    unknown = [
        one.noun
        for one in imagenet_nouns()
        if not corpus_genders()[head(one)] and not lexicon_readings()[head(one)]
    ]
    print(f"no evidence of gender: {len(unknown)} classes: {', '.join(unknown)}")
    listed = section("Nouns without evidence of their gender").strip().split("\n\n")[-1]
    assert listed.replace("\n", " ").rstrip(".").split(", ") == unknown
