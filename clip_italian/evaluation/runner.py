"""What is asked of a set: retrieval, zero-shot, probes, contrast pairs; and asking a model."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clip_italian.collection import Collection
from clip_italian.config import ConfigError
from clip_italian.evaluation import cache, contrast, tasks, zero_shot
from clip_italian.evaluation.encoders import Encoder
from clip_italian.evaluation.languages import naming
from clip_italian.evaluation.languages.pack import BARE, LanguagePack
from clip_italian.evaluation.tasks import Outcome, Subject


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to name the classes of a set.

    Attributes:
      name: what the report calls it, e.g. "it, 35 templates".
      pack: names and templates of the set's classes.
      labels: int [images], index into the pack's classes.
    """

    name: str
    pack: LanguagePack
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked of one set.

    Attributes:
      collection: the set.
      variants: zero-shot classifications.
      probe_train: labelled images with the same classes, or None.
      items: contrast pairs whose pictures the set is, or None; then nothing else is asked.
    """

    collection: Collection
    variants: tuple[Variant, ...] = ()
    probe_train: Collection | None = None
    items: Sequence[contrast.Item] | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """Outcomes of one model on one set, and the embeddings behind them (texts: of captions)."""

    outcomes: list[Outcome]
    image_embeds: np.ndarray
    text_embeds: np.ndarray | None


def variants(
    collection: Collection,
    *,
    class_names: Sequence[str],
    legacy_names: str = "",
    legacy_key: str = "",
    caption_labels: bool = False,
) -> tuple[Variant, ...]:
    """The zero-shot classifications of a set: none where it has no classes.

    Classes are named by the first pack that knows them all: with the pack's first template alone,
    then with all of its templates. Then come the published names with the paper's template {};
    where classes share a name there, all their images count as wrong, so they are classified once
    more with such classes taken as one. Names that are not for these classes are left out, with a
    warning.

    Raises:
      ConfigError: no such pack or file, or captions are no labels.
    """
    found: list[Variant] = []
    labels, class_ids = collection.labels, collection.class_ids
    if labels is not None:
        packs = [(names, naming.open_pack(names)) for names in class_names]
        fits = [(n, p) for n, p in packs if set(class_ids) <= {one.class_id for one in p.classes}]
        if fits:
            names, pack = fits[0]
            pack = naming.select(pack, class_ids)
            kinds = [naming.single(pack, pack.templates[0])]
            kinds += [pack] if len(pack.templates) > 1 else []
            title = Path(names).name
            found += [Variant(naming.describe(title, one), one, labels) for one in kinds]
        else:
            _warn_left_out(collection.name, f"class_names {list(class_names)}")
        if legacy_names:
            found += _legacy(collection, labels, legacy_names, legacy_key)
    elif caption_labels and collection.captions:
        texts, labels = zero_shot.classes_from_captions(
            collection.captions, collection.caption_image
        )
        found.append(Variant("captions, {}", naming.plain_pack(texts, texts), labels))
    return tuple(found)


def _legacy(collection: Collection, labels: np.ndarray, path: str, key: str) -> list[Variant]:
    try:
        pack = naming.legacy_pack(path, collection.class_ids, key=key)
    except naming.OtherClasses:
        _warn_left_out(collection.name, f"legacy_names {path}")
        return []
    found = [Variant("legacy, {}", pack, labels)]
    names = [one.forms[BARE] for one in pack.classes]
    distinct = list(dict.fromkeys(names))
    if len(distinct) < len(names):
        place = np.array([distinct.index(name) for name in names], np.int32)
        merged = naming.plain_pack(distinct, distinct)
        found.append(Variant("legacy, {}, equal names as one class", merged, place[labels]))
    return found


def _warn_left_out(name: str, what: str) -> None:
    logging.warning("%s: %s has not all of its classes; zero-shot leaves it out", name, what)


def probe_train(collection: Collection, training: Sequence[Collection]) -> Collection | None:
    """The training images for the set's classes; None for a set without classes.

    A few images in both are logged; they raise the score by at most their share.

    Raises:
      ConfigError: two training sets have the classes, there is nothing to tune or train on, or
        more than 1% of the set's images are among the training images.
    """
    if collection.labels is None:
        return None
    found = [one for one in training if list(one.class_ids) == list(collection.class_ids)]
    if len(found) > 1:
        names = [one.name for one in found]
        raise ConfigError(f"probe_train: {names} all have the classes of {collection.name}")
    if not found:
        return None
    train = found[0]
    assert train.labels is not None
    counts = np.bincount(train.labels)
    if np.count_nonzero(counts) < 2 or counts.max() < 2:
        raise ConfigError(
            f"probe_train: {train.name} needs two classes, and a class with two images to tune on"
        )
    known = set(train.checksums)
    shared = sum(one in known for one in collection.checksums)
    if shared > 0.01 * len(collection) or train.fingerprint == collection.fingerprint:
        raise ConfigError(
            f"probe_train: {shared:,} of the {len(collection):,} images of {collection.name} are "
            f"also in {train.name}; name the images of another split"
        )
    if shared:
        logging.warning("%s: %d images are also in %s", collection.name, shared, train.name)
    return train


def answer(encoder: Encoder, plan: Plan, *, cache_dir: str, resamples: int) -> Answer:
    """Asks one model everything about one set."""
    one = plan.collection
    subject = Subject(encoder.name, encoder.fingerprint, one, resamples)
    images = cache.image_embeds(encoder, one, cache_dir)
    if plan.items is not None:
        texts = cache.text_embeds(encoder, contrast.texts(plan.items), cache_dir)
        return Answer([tasks.contrast_pairs(subject, plan.items, images, texts)], images, None)
    outcomes, captions = [], None
    if one.captions:
        captions = cache.text_embeds(encoder, one.captions, cache_dir)
        outcomes.append(tasks.retrieval(subject, images, captions))
    for variant in plan.variants:
        pack = variant.pack
        embeds = zero_shot.pack_embeds(pack, lambda t: cache.text_embeds(encoder, t, cache_dir))
        outcomes.append(
            tasks.classification(subject, images, embeds, variant.labels, pack, variant.name)
        )
    if plan.probe_train is not None:
        train = plan.probe_train
        embeds = cache.image_embeds(encoder, train, cache_dir)
        outcomes += tasks.probes(subject, embeds, images, train)
    return Answer(outcomes, images, captions)
