"""Names of evaluation sets, as flags and configs give them → collections."""

import dataclasses
import re
from collections.abc import Callable, Sequence

from clip_italian.collection import Collection
from clip_italian.config import ConfigError
from clip_italian.evaluation import contrast, folders, protocols

OpenSplit = Callable[[str, str], Collection]  # name, split

HELP = (
    f"{', '.join(protocols.PROTOCOLS)}, contrast[:FILE], records:SOURCE[:SPLIT], folder:PATH, "
    "jsonl:FILE, tfds:NAME[:SPLIT]"
)


def open_set(
    name: str,
    *,
    eval_dir: str,
    language: str,
    open_records: OpenSplit,
    open_tfds: OpenSplit,
) -> Collection:
    """Opens one set.

    Args:
      name: a protocol of `protocols.PROTOCOLS`; `contrast` (the Italian contrast pairs) or
        `contrast:FILE`; `records:SOURCE` (its validation split) or `records:SOURCE:SPLIT`;
        `folder:PATH` with one folder a class; `jsonl:FILE`; `tfds:NAME` (its test split) or
        `tfds:NAME:SPLIT`. `LABEL=` before any of these is what the report calls the set.
      eval_dir: where the files of protocols lie.
      language: of the captions, where the files do not tell.
      open_records: (source, split) → collection.
      open_tfds: (name, split) → collection.

    Raises:
      ConfigError: no such set, or its files are missing or broken.
    """
    label, spec = split_label(name)
    if label:
        openers = {"open_records": open_records, "open_tfds": open_tfds}
        opened = open_set(spec, eval_dir=eval_dir, language=language, **openers)
        return dataclasses.replace(opened, name=label)
    items = contrast_items(name)
    if items is not None:
        return contrast.collection(items, language=language)
    if name in protocols.PROTOCOLS:
        return protocols.open_protocol(name, eval_dir, language=language)
    kind, _, rest = name.partition(":")
    if kind == "folder" and rest:
        return dataclasses.replace(folders.open_folder(rest), language=language)
    if kind == "jsonl" and rest:
        return folders.open_jsonl(rest, language=language)
    if kind in ("records", "tfds") and rest:
        source, _, split = rest.partition(":")
        opener, usual = (open_records, "validation") if kind == "records" else (open_tfds, "test")
        return dataclasses.replace(opener(source, split or usual), language=language)
    raise ConfigError(f"{name!r} is no evaluation set; give one of: {HELP}")


def contrast_items(name: str) -> tuple[contrast.Item, ...] | None:
    """The contrast pairs that `contrast` or `contrast:FILE` names; None for any other set."""
    kind, _, file = split_label(name)[1].partition(":")
    return contrast.read_items(file or contrast.ITALIAN) if kind == "contrast" else None


def split_label(name: str) -> tuple[str, str]:
    """`LABEL=rest` → (label, rest); without a label ("", name)."""
    label, found, rest = name.partition("=")
    return (label, rest) if found and re.fullmatch(r"\w+", label) else ("", name)


def open_training_sets(
    names: Sequence[str],
    *,
    eval_dir: str,
    language: str,
    open_records: OpenSplit,
    open_tfds: OpenSplit,
) -> list[Collection]:
    """The sets that a run is evaluated on besides its validation splits; see `open_set`.

    Raises:
      ConfigError: naming `eval_sets`: as `open_set`, or contrast pairs, which have other metrics.
    """
    found = []
    for name in names:
        try:
            if contrast_items(name) is not None:
                raise ConfigError("contrast pairs are for `clip-italian evaluate`")
            found.append(
                open_set(
                    name,
                    eval_dir=eval_dir,
                    language=language,
                    open_records=open_records,
                    open_tfds=open_tfds,
                )
            )
        except ConfigError as error:
            raise ConfigError(f"eval_sets: {error}") from error
    return found
