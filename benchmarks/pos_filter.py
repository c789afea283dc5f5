"""How well the proper-noun filter works on Italian, with a tagger trained on the spot.

    python benchmarks/pos_filter.py --ud_dir FOLDER

FOLDER (default: `text` in the folder that CLIP_ITALIAN_REAL_DATA names) holds the Universal
Dependencies treebank ISDT: `it_isdt-ud-dev.conllu`, whose 564 sentences train a small spaCy
tagger (a CNN without word vectors), and `it_isdt-ud-test.conllu`, whose gold tags judge it. The
numbers are those of this tagger, not of it_core_news_lg, which has seen far more text.

Whole sentences are hardly ever names, so the filter is also judged on fragments like captions:
each subtree below a noun or proper noun that is an unbroken run of 2 to 12 words, without the
articles, prepositions, conjunctions and punctuation at its ends ("Tate Gallery").
"""

import argparse
import dataclasses
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import spacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import minibatch
from thinc.api import fix_random_seed

from data_prep.filters import TextFilters, load_tagger, make_checker, proper_noun_share
from data_prep.text import normalize


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Surface tokens ("della" is one) with gold tags; `tags[i]` of a contraction is its first.

    Attributes:
      words: as written.
      spaces: whether a space follows.
      tags: Universal Dependencies parts of speech.
      heads: index of the token that governs this one, itself at the root.
    """

    words: tuple[str, ...]
    spaces: tuple[bool, ...]
    tags: tuple[str, ...]
    heads: tuple[int, ...]

    @property
    def text(self) -> str:
        """As written, with no space at the end."""
        parts = zip(self.words, self.spaces, strict=True)
        return "".join(word + " " * space for word, space in parts).rstrip()

    def cut(self, start: int, stop: int) -> "Sentence":
        """A run of tokens without their tree."""
        run = slice(start, stop)
        heads = tuple(range(stop - start))
        return Sentence(self.words[run], self.spaces[run], self.tags[run], heads)


def main() -> None:
    """The command line: prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    real_data = os.environ.get("CLIP_ITALIAN_REAL_DATA")
    parser.add_argument(
        "--ud_dir",
        type=Path,
        default=Path(real_data) / "text" if real_data else None,
        required=not real_data,
        help="folder of the treebank",
    )
    parser.add_argument("--epochs", type=int, default=8, help="passes over the training set")
    arguments = parser.parse_args()
    training = list(read_conllu(arguments.ud_dir / "it_isdt-ud-dev.conllu"))
    test = list(read_conllu(arguments.ud_dir / "it_isdt-ud-test.conllu"))
    start = time.perf_counter()
    nlp = train(training, arguments.epochs)
    results: dict[str, object] = {
        "trained_on_sentences": len(training),
        "training_s": round(time.perf_counter() - start),
    }
    phrases = [fragment for sentence in test for fragment in fragments(sentence)]
    with tempfile.TemporaryDirectory() as folder:
        nlp.to_disk(folder)
        results["tokens"] = tokens_found(test, folder)
        results["sentences"] = filter_found(test, folder)
        results["fragments"] = filter_found(phrases, folder)
        results["sentences_per_s"] = round(speed([sentence.text for sentence in test], folder))
        results["fragments_per_s"] = round(speed([phrase.text for phrase in phrases], folder))
    print(json.dumps(results))


def read_conllu(path: Path) -> Iterator[Sentence]:
    """The sentences of a CoNLL-U file, contractions put together as they are written."""
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        rows = [line.split("\t") for line in block.splitlines() if not line.startswith("#")]
        token_of: dict[int, int] = {0: -1}  # word number → index of its surface token
        tokens: list[list[str]] = []
        covered = 0  # words up to here belong to a contraction
        for row in rows:
            if "." in row[0]:  # an elided word: not in the text
                continue
            first, _, last = row[0].partition("-")
            if last:
                covered = int(last)
                tokens.append(row)
                token_of |= dict.fromkeys(range(int(first), covered + 1), len(tokens) - 1)
            elif int(first) > covered:
                token_of[int(first)] = len(tokens)
                tokens.append(row)
        yield _sentence(rows, tokens, token_of)


def _sentence(rows: list[list[str]], tokens: list[list[str]], token_of: dict[int, int]) -> Sentence:
    tags, heads = [""] * len(tokens), list(range(len(tokens)))
    for row in rows:
        if row[0].isdigit():
            token, head = token_of[int(row[0])], token_of[int(row[6])]
            tags[token] = tags[token] or row[3]
            if head not in (-1, token):  # of a contraction the last word that leaves it governs
                heads[token] = head
    words = tuple(token[1] for token in tokens)
    spaces = tuple("SpaceAfter=No" not in token[9] for token in tokens)
    return Sentence(words, spaces, tuple(tags), tuple(heads))


def fragments(sentence: Sentence) -> Iterator[Sentence]:
    """Noun phrases as captions have them, each once a sentence; see the top of the file."""
    below: list[set[int]] = [{token} for token in range(len(sentence.words))]
    for token in range(len(sentence.words)):
        path, above = {token}, sentence.heads[token]
        while above not in path:
            below[above].add(token)
            path.add(above)
            above = sentence.heads[above]
    runs = set()
    for token, tree in enumerate(below):
        start, stop = min(tree), max(tree) + 1
        if sentence.tags[token] not in ("NOUN", "PROPN") or stop - start != len(tree):
            continue
        edge = ("ADP", "DET", "CCONJ", "SCONJ", "PUNCT")
        while start < stop and sentence.tags[start] in edge:
            start += 1
        while start < stop and sentence.tags[stop - 1] in edge:
            stop -= 1
        if 2 <= stop - start <= 12:
            runs.add((start, stop))
    yield from (sentence.cut(*run) for run in sorted(runs))


def train(sentences: Sequence[Sentence], epochs: int) -> Language:
    """A tagger from nothing, on sentences and their fragments; the same at every call."""
    fix_random_seed(0)
    nlp = spacy.blank("it")
    nlp.add_pipe("morphologizer")
    fragments_too = [*sentences, *(part for whole in sentences for part in fragments(whole))]
    examples = [_example(nlp, sentence) for sentence in fragments_too]
    optimizer = nlp.initialize(lambda: examples)
    rng = random.Random(0)
    for _ in range(epochs):
        rng.shuffle(examples)
        for batch in minibatch(examples, 32):
            nlp.update(batch, sgd=optimizer, drop=0.2)
    return nlp


def _example(nlp: Language, sentence: Sentence) -> Example:
    words, spaces = list(sentence.words), list(sentence.spaces)
    gold = Doc(nlp.vocab, words=words, spaces=spaces, pos=list(sentence.tags))
    return Example(Doc(nlp.vocab, words=words, spaces=spaces), gold)


def tokens_found(sentences: Sequence[Sentence], model: str) -> dict[str, float | None]:
    """Precision and recall of PROPN, by place in the raw text: a wrong cut counts as an error."""
    nlp = spacy.load(model)
    counts: Counter[str] = Counter()
    for sentence, doc in zip(sentences, nlp.pipe(s.text for s in sentences), strict=True):
        found = {(t.idx, t.idx + len(t)) for t in doc if t.pos_ == "PROPN"}
        gold, place = set(), 0
        for word, space, tag in zip(sentence.words, sentence.spaces, sentence.tags, strict=True):
            if tag == "PROPN":
                gold.add((place, place + len(word)))
            place += len(word) + space
        counts += Counter(both=len(found & gold), found=len(found), gold=len(gold))
    return rates(counts["both"], counts["found"], counts["gold"])


def filter_found(sentences: Sequence[Sentence], model: str) -> dict[str, float | None]:
    """Precision and recall of what the filter drops, against the filter on gold tags."""
    options = TextFilters(pos_model=model, min_characters=0, min_letters=0.0, boilerplate=False)
    reasons = make_checker(options)([normalize(sentence.text) for sentence in sentences])
    found = [reason == "proper nouns" for reason in reasons]
    gold = [proper_noun_share(s.tags) >= options.max_proper_nouns for s in sentences]
    both = sum(a and b for a, b in zip(found, gold, strict=True))
    return {"all": len(sentences)} | rates(both, sum(found), sum(gold))


def rates(both: int, found: int, gold: int) -> dict[str, float | None]:
    """Precision and recall (None without a case) with the counts they come from."""
    return {
        "gold": gold,
        "found": found,
        "precision": round(both / found, 3) if found else None,
        "recall": round(both / gold, 3) if gold else None,
    }


def speed(texts: list[str], model: str, seconds: float = 5.0) -> float:
    """Sentences tagged per second of processor time (all threads together)."""
    tag = load_tagger(model)
    list(tag(texts))
    done, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        done += sum(1 for _ in tag(texts))
    return done / (time.process_time() - start)


if __name__ == "__main__":
    main()
