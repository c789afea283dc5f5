"""`clip-italian evaluate` and `clip-italian compare`: flags → reports."""

import dataclasses
import importlib.util
import io
import itertools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

from clip_italian.collection import Collection
from clip_italian.config import ConfigError
from clip_italian.evaluation import baselines, comparison, examples, page, report, runner, sets
from clip_italian.evaluation.encoders import TRANSLATED, Encoder, Labelled, open_encoder
from clip_italian.evaluation.options import Compare, Evaluate
from clip_italian.evaluation.outcome import MODEL
from clip_italian.evaluation.runner import Answer, Plan
from clip_italian.evaluation.tasks import Outcome

_SIDE = 256  # longer side of a picture in the gallery, in pixels
Translate = Callable[[Sequence[str]], list[str]]


@dataclasses.dataclass(frozen=True)
class Rooms:
    """What other rooms give to an evaluation; `cli.py` joins them.

    Attributes:
      open_run: (path, tokenizer, batch_size) → encoder of a run of ours.
      open_records: (data_dir, source, split) → collection.
      open_tfds: (name, split) → collection.
      translator: (Marian model, language) → texts to English texts, what identifies its words.
    """

    open_run: Callable[[str, str, int], Encoder]
    open_records: Callable[[str, str, str], Collection]
    open_tfds: Callable[[str, str], Collection]
    translator: Callable[[str, str], tuple[Translate, str]]


def evaluate(words: Sequence[str], rooms: Rooms) -> str:
    """Runs `clip-italian evaluate`; returns what to print.

    Raises:
      ConfigError: a flag, a model or a set cannot be used; all are opened before any is encoded.
    """
    flags = parse(Evaluate, words, "evaluate")
    _check(flags)
    plans = _plans(flags, rooms)
    encoders = [_open_model(name, flags, rooms) for name in flags.models]
    _check_different("models", [one.name for one in encoders])
    answers = [
        [
            runner.answer(one, plan, cache_dir=flags.cache_dir, resamples=flags.resamples)
            for plan in plans
        ]
        for one in encoders
    ]
    outcomes = [list(itertools.chain(*(one.outcomes for one in model))) for model in answers]
    shown = [
        _exhibit(plan.collection, [model[number] for model in answers], encoders, flags.examples)
        for number, plan in enumerate(plans)
        if flags.examples and answers[0][number].text_embeds is not None
    ]
    tests = [
        comparison.paired_tests([outcomes[0]], [other], resamples=flags.resamples)
        for other in outcomes[1:]
    ]
    made = report.make_report(
        [one.result for one in itertools.chain(*outcomes)],
        command=shlex.join(["clip-italian", "evaluate", *words]),
        comparisons=list(itertools.chain(*tests)),
    )
    return _write(flags.out_dir, made, list(itertools.chain(*outcomes)), shown)


def compare(words: Sequence[str]) -> str:
    """Runs `clip-italian compare`; returns what to print.

    Raises:
      ConfigError: a report cannot be read, holds several models, or is of other data.
    """
    flags = parse(Compare, words, "compare")
    sides = [[_read_model(name) for name in names] for names in (flags.a, flags.b) if names]
    if not flags.b and len(flags.a) < 2:
        raise ConfigError("compare: give the other model's reports as b, or several seeds as a")
    if flags.resamples < 1:
        raise ConfigError(f"resamples = {flags.resamples} is not allowed; give 1 or more")
    tests = (
        comparison.paired_tests(sides[0], sides[1], resamples=flags.resamples) if flags.b else []
    )
    seeds = [comparison.over_seeds(side) for side in sides]
    outcomes = list(itertools.chain(*itertools.chain(*sides)))
    made = report.make_report(
        [one.result for one in outcomes],
        command=shlex.join(["clip-italian", "compare", *words]),
        comparisons=tests,
        seeds=list(itertools.chain(*seeds)),
    )
    return _write(flags.out_dir, made, outcomes, []) if flags.out_dir else report.table(made)


def parse(kind: type, words: Sequence[str], name: str) -> Any:
    """The words of a command line as its flags; a wrong one ends the program with status 2."""
    return tyro.cli(
        kind,
        args=list(words),
        prog=f"clip-italian {name}",
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _check(flags: Evaluate) -> None:
    """What can be said before anything is opened."""
    for name, least in (("resamples", 1), ("batch_size", 1), ("examples", 0)):
        if getattr(flags, name) < least:
            raise ConfigError(
                f"{name} = {getattr(flags, name)} is not allowed; give {least} or more"
            )
    for name in ("models", "sets"):
        if not getattr(flags, name):
            raise ConfigError(f"{name} is empty; name at least one")
    translated = any(TRANSLATED in sets.split_label(name)[1] for name in flags.models)
    for name, value, used in (
        ("legacy_key", flags.legacy_key, bool(flags.legacy_names)),
        ("translator", flags.translator, translated),
    ):
        if value and not used:
            raise ConfigError(f"{name} = {value!r} would be ignored; leave it out")
    if flags.probe_train and not importlib.util.find_spec("sklearn"):
        raise ConfigError(
            "probe_train needs scikit-learn: install the extra: pip install 'clip-italian[eval]'"
        )


def _plans(flags: Evaluate, rooms: Rooms) -> list[Plan]:
    """What is asked of each set, in the order of the flag."""

    def open_set(name: str) -> Collection:
        return sets.open_set(
            name,
            eval_dir=flags.eval_dir,
            language=flags.language,
            open_records=lambda source, split: rooms.open_records(flags.data_dir, source, split),
            open_tfds=rooms.open_tfds,
        )

    training = [open_set(name) for name in flags.probe_train]
    plans = []
    for name in flags.sets:
        collection, items = open_set(name), sets.contrast_items(name)
        if items is not None:
            plans.append(Plan(collection, items=items))
            continue
        variants = runner.variants(
            collection,
            class_names=flags.class_names,
            legacy_names=flags.legacy_names,
            legacy_key=flags.legacy_key,
            caption_labels=flags.caption_labels,
        )
        train = runner.probe_train(collection, training)
        if not (variants or train or collection.captions):
            raise ConfigError(
                f"class_names: no pack of {list(flags.class_names)} knows the classes of "
                f"{collection.name} ({', '.join(collection.class_ids[:5])}, ...); name a folder "
                "with a pack that does (docs/new_language.md)"
            )
        if len(collection) < 2:
            raise ConfigError(f"sets: {name} has {len(collection)} image; two at least are needed")
        plans.append(Plan(collection, variants, train))
    _check_different("sets", [plan.collection.name for plan in plans])
    unused = [one.name for one in training if all(plan.probe_train is not one for plan in plans)]
    if unused:
        raise ConfigError(f"probe_train: no set has the classes of {unused}; check the folders")
    return plans


def _open_model(name: str, flags: Evaluate, rooms: Rooms) -> Encoder:
    label, spec = sets.split_label(name)
    translated = spec.startswith(TRANSLATED)
    opened = open_encoder(
        spec,
        open_run=lambda path: rooms.open_run(path, flags.tokenizer, flags.batch_size),
        open_baseline=lambda spec: baselines.open_baseline(spec, batch_size=flags.batch_size),
        translate=rooms.translator(flags.translator, flags.language) if translated else None,
    )
    return Labelled(label, opened) if label else opened


def _check_different(flag: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ConfigError(
            f"{flag}: two of them are called {twice}, and tables could not tell them apart; "
            "write LABEL= before one to call it otherwise"
        )


def _exhibit(
    collection: Collection, answers: Sequence[Answer], encoders: Sequence[Encoder], queries: int
) -> page.Exhibit:
    """Best and worst queries of the first two models, each beside what the other found."""
    shown = [
        examples.Embedded(
            encoder.name, one.image_embeds, one.text_embeds, one.outcomes[0].items["text_to_image"]
        )
        for encoder, one in list(zip(encoders, answers, strict=True))[:2]
        if one.text_embeds is not None
    ]
    captions, caption_image = collection.captions, collection.caption_image
    chosen = [
        examples.best_and_worst(order, caption_image, captions, queries=queries)
        for order in (shown, shown[::-1])[: len(shown)]
    ]
    return page.Exhibit(
        collection.name, collection.language, chosen, lambda images: _pictures(collection, images)
    )


def _pictures(collection: Collection, images: Sequence[int]) -> list[np.ndarray]:
    """uint8 [height, width, 3] of each, shrunk to the page's size."""
    found = []
    for data in collection.read(np.asarray(images, np.int64)):
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (_SIDE, _SIDE))  # a large JPEG is never decoded in full
            image.thumbnail((_SIDE, _SIDE))
            found.append(np.asarray(image.convert("RGB")))
    return found


def _read_model(name: str) -> list[Outcome]:
    """The outcomes of `FOLDER` or `FOLDER#MODEL`."""
    folder, _, model = name.partition("#")
    made, items = report.read(folder)
    found = [
        Outcome(result, arrays)
        for result, arrays in zip(report.results(made), items, strict=True)
        if not model or result.model == model
    ]
    # A report that training wrote does not know what its run is called.
    own = Path(folder).resolve().name
    found = [
        dataclasses.replace(one, result=dataclasses.replace(one.result, model=own))
        if one.result.model == MODEL
        else one
        for one in found
    ]
    models = sorted({one.result.model for one in found})
    if len(models) != 1:
        known = models or sorted({one.model for one in report.results(made)})
        raise ConfigError(f"compare: {name} holds {known}; name one of them as FOLDER#MODEL")
    return found


def _write(
    out_dir: str, made: dict[str, Any], outcomes: Sequence[Outcome], shown: Sequence[page.Exhibit]
) -> str:
    """Writes the report in all its forms; returns the table and where they are."""
    folder, items = Path(out_dir), [one.items for one in outcomes]
    report.write(folder, made, items)
    (folder / "report.md").write_text(report.markdown(made), encoding="utf-8")
    page.write_page(folder / "report.html", made, items, shown)
    return f"{report.table(made)}\nreport: {folder / 'report.html'} (and .md, .json, items.npz)"
