"""What an update of an index has to do: which rows stay, which pictures are to be embedded."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from clip_italian.config import ConfigError
from clip_italian.demo import parts, storage
from clip_italian.demo.embedding import UNREADABLE, facts_of
from clip_italian.demo.sources import Pictures


@dataclasses.dataclass(frozen=True)
class Group:
    """One part to write: rows of parts that it replaces, and new pictures.

    Attributes:
      parts: those replaced, whole.
      carried: for each of them rows of its own and the number of each picture.
      new: numbers of the pictures to embed.
    """

    parts: list[storage.File]
    carried: list[list[tuple[int, int]]]
    new: list[int]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an update is going to do.

    Attributes:
      groups: parts to write.
      new: numbers of all pictures to embed.
      known: of those, the ones whose key has a row already.
      kept: how many rows stay.
      removed: how many rows are of pictures that are gone.
      rejected: pictures set aside before that are as they were.
    """

    groups: list[Group]
    new: list[int]
    known: set[int]
    kept: int
    removed: int
    rejected: tuple[storage.Rejected, ...]


def make_plan(folder: Path, manifest: storage.Manifest, pictures: Pictures, part_rows: int) -> Plan:
    """Compares an index with the pictures as they are now; reads those whose stamps have changed.

    Raises:
      ConfigError: it has rows, and none is of these pictures; or a part is damaged.
    """
    place = {key: number for number, key in enumerate(pictures.keys)}
    rejected = tuple(
        one
        for one in manifest.rejected
        if one.key in place
        and pictures.stamps[place[one.key]] == one.stamp
        and one.reason != UNREADABLE
    )
    facts = [parts.open_part(folder, part, manifest.dim)[1] for part in manifest.parts]
    known = {place[key] for one in facts for key in one.keys if key in place}
    rows = sum(len(one.keys) for one in facts)
    if rows and not known:
        raise ConfigError(
            f"{folder} is an index of {manifest.pictures}, and none of its {rows:,} pictures is "
            f"among those of {pictures.title}; name another folder, or delete this one"
        )
    stay = [_staying(one, pictures, place) for one in facts]
    kept = {number for one in stay for _, number in one}
    new = sorted(set(range(len(place))) - kept - {place[one.key] for one in rejected})
    same = [
        len(one) == part.rows and facts_of(pictures, [n for _, n in one], old.sha256) == old
        for one, part, old in zip(stay, manifest.parts, facts, strict=True)
    ]
    work = bool(new) or not all(same)
    redo = [
        (part, one)
        for part, one, fits in zip(manifest.parts, stay, same, strict=True)
        if not fits or (work and part.rows < part_rows // 2)  # else small parts would pile up
    ]
    return Plan(
        groups=_pack(redo, new, part_rows),
        new=new,
        known=known & set(new),
        kept=len(kept),
        removed=rows - len(known),
        rejected=rejected,
    )


def _staying(
    facts: parts.Facts, pictures: Pictures, place: dict[str, int]
) -> list[tuple[int, int]]:
    """(row, number) of what a part holds of pictures that are as they were."""
    staying = []
    for row, (key, stamp, sha256) in enumerate(
        zip(facts.keys, facts.stamps, facts.sha256, strict=True)
    ):
        number = place.get(key)
        if number is not None and (
            pictures.stamps[number] == stamp or _sum(pictures, number) == sha256
        ):
            staying.append((row, number))
    return staying


def _sum(pictures: Pictures, number: int) -> str:
    try:
        return hashlib.sha256(pictures.read(number)).hexdigest()
    except Exception:  # embedding it says what is wrong
        return ""


def _pack(
    redo: Sequence[tuple[storage.File, list[tuple[int, int]]]], new: Sequence[int], part_rows: int
) -> list[Group]:
    """Parts to write. A part that is replaced goes into one group, so that one step swaps them."""
    groups, rows = [Group([], [], [])], 0
    for part, staying in redo:
        if rows and rows + len(staying) > part_rows:
            groups.append(Group([], [], []))
            rows = 0
        groups[-1].parts.append(part)
        groups[-1].carried.append(staying)
        rows += len(staying)
    room = max(0, part_rows - rows)
    groups[-1].new.extend(new[:room])
    for start in range(room, len(new), part_rows):
        groups.append(Group([], [], list(new[start : start + part_rows])))
    return [group for group in groups if group.parts or group.new]
