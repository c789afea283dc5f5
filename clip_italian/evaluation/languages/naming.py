"""What names and prompts a labelled set is classified with: our packs, or names given in a file.

Old numbers were made with published names. Their files stay with whoever owns them; here they are
read as packs of one form and one template, the name itself.
"""

import csv
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clip_italian.config import ConfigError
from clip_italian.evaluation.languages.it.names import imagenet_pack
from clip_italian.evaluation.languages.pack import BARE, ClassName, LanguagePack, read_pack

NAME_ITSELF = f"{{{BARE}}}"  # the paper's template {}


class OtherClasses(ConfigError):
    """Names that are not for the classes of a set."""


def open_pack(names: str) -> LanguagePack:
    """The pack of a language of ours (`it`), or the one in a folder.

    Raises:
      ConfigError: neither, or the folder holds no pack.
    """
    if names in PACKS:
        return PACKS[names]()
    if not Path(names).is_dir():
        raise ConfigError(
            f"class_names {names!r}: no language ({', '.join(PACKS)}) and no folder; a folder "
            "needs classes.tsv and templates.txt"
        )
    return read_pack(names)


def select(pack: LanguagePack, class_ids: Sequence[str]) -> LanguagePack:
    """The classes of a set, in its own order: Tiny-ImageNet's 200 of ImageNet's 1,000.

    Raises:
      ConfigError: the pack lacks a class.
    """
    by_id = {one.class_id: one for one in pack.classes}
    _check_all(class_ids, by_id, "the language pack")
    return dataclasses.replace(pack, classes=tuple(by_id[one] for one in class_ids))


def single(pack: LanguagePack, template: str) -> LanguagePack:
    """The pack with one template: the single-prompt variant beside the ensemble.

    Raises:
      ConfigError: the template does not name one of the pack's forms.
    """
    return dataclasses.replace(pack, templates=(template,))


def describe(names: str, pack: LanguagePack) -> str:
    """What reports call classification with this pack: "it, 35 templates", "it, {bare}"."""
    templates = pack.templates
    return f"{names}, {templates[0] if len(templates) == 1 else f'{len(templates)} templates'}"


def plain_pack(class_ids: Sequence[str], names: Sequence[str]) -> LanguagePack:
    """A pack of names as they are, each its own prompt: for classes that no pack knows.

    Args:
      class_ids: what the set calls its classes.
      names: one for each class; two classes may share one, and then tie.

    Raises:
      ConfigError: a name is empty, an id occurs twice, or there is not one name for each class.
    """
    if len(class_ids) != len(names):
        raise ConfigError(
            f"class names: {len(names)} for {len(class_ids)} classes; give one for each"
        )
    pairs = zip(class_ids, names, strict=True)
    return LanguagePack(tuple(ClassName(one, {BARE: name}) for one, name in pairs), (NAME_ITSELF,))


def legacy_pack(path: str | Path, class_ids: Sequence[str], key: str = "") -> LanguagePack:
    """Published names from a file, to reproduce old numbers.

    The file is one of

        .json   a list of names
        .json   an object, id → name
        .json   a list of objects; `key` says which field is the name
        .tsv    a table with a header; `key` says which column is the name
        other   one name a line

    Rows with a field that holds the ids of the classes are matched by it. Otherwise names stand in
    ascending order of the ids: as many as there are classes, or ILSVRC's 1,000 for any part of it
    (its class index is the order of the WordNet ids).

    Args:
      path: the file.
      class_ids: the classes to name, in the order of the set.
      key: for rows with several fields, the one to take.

    Raises:
      ConfigError: the file cannot be read or holds something else, `key` is missing or names
        nothing, or a class has no name.
    """
    entries = _read(Path(path))
    where = f"class names in {str(path)!r}"
    if isinstance(entries, dict) or all(isinstance(one, str) for one in entries):
        if key:
            raise ConfigError(f"{where}: they have no fields, so that {key!r} names none")
        named = entries
    elif all(isinstance(one, dict) for one in entries):
        named = _names_in(entries, class_ids, key, where)
    else:
        raise ConfigError(f"{where}: a list must hold names only, or objects only")
    if isinstance(named, list):
        named = _by_place(named, class_ids, where)
    _check_all(class_ids, named, where)
    found = [named[one] for one in class_ids]
    bad = [name for name in found if not isinstance(name, str)]
    if bad:
        raise ConfigError(f"{where}: {bad[0]!r} is no text ({len(bad)} like it)")
    return plain_pack(class_ids, found)


def _read(path: Path) -> Any:
    """A list or a dict: what the file holds."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            entries = json.loads(text)
        elif path.suffix == ".tsv":
            rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
            entries = list(rows)
        else:
            entries = text.splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"class names {str(path)!r} cannot be read ({error})") from error
    if not isinstance(entries, list | dict) or not entries:
        raise ConfigError(
            f"class names {str(path)!r}: there are none; give a list or an object of names"
        )
    return entries


def _names_in(
    rows: list[dict[str, Any]], class_ids: Sequence[str], key: str, where: str
) -> dict[str, Any] | list[Any]:
    """One field of each row: by id where another field holds the ids, else in order."""
    fields = [field for field in rows[0] if all(field in row for row in rows)]
    if key not in fields:
        raise ConfigError(f"{where}: field {key!r} does not exist; give one of {fields}")
    # Which field has the ids is seen by its values: published files call it wnid, set_id, ...
    for field in fields:
        named = {row[field]: row[key] for row in rows if isinstance(row[field], str)}
        if field != key and not named.keys().isdisjoint(class_ids):
            return named
    return [row[key] for row in rows]


def _by_place(names: list[Any], class_ids: Sequence[str], where: str) -> dict[str, Any]:
    """Id → name, for names in ascending order of the ids."""
    ilsvrc = [one.class_id for one in imagenet_pack().classes]
    part = len(names) == len(ilsvrc) and set(class_ids) <= set(ilsvrc)
    order = ilsvrc if part else sorted(class_ids)
    if len(names) != len(order):
        raise OtherClasses(
            f"{where}: {len(names)} names for {len(order)} classes; give one for each, in "
            "ascending order of the class ids, or a file that has the ids"
        )
    return dict(zip(order, names, strict=True))


def _check_all(class_ids: Sequence[str], known: dict[str, Any], where: str) -> None:
    missing = [one for one in class_ids if one not in known]
    if missing:
        raise OtherClasses(
            f"{where}: no name for {len(missing)} of {len(class_ids)} classes: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        )


PACKS: dict[str, Callable[[], LanguagePack]] = {"it": imagenet_pack}
