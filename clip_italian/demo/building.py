"""Making an index of pictures and keeping it up to date, part by part."""

import collections
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clip_italian.demo import parts, planning, storage
from clip_italian.demo.embedding import embed, facts_of
from clip_italian.demo.index import other_model
from clip_italian.demo.sources import Pictures
from clip_italian.evaluation.encoders import Encoder

PART_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Summary:
    """What an update did, in pictures.

    Attributes:
      added: were not there before.
      kept: were there and are the same.
      changed: were there, and their files have other contents now.
      removed: were there, and are gone from where the pictures come from.
      rejected: reason → how many are set aside, those of earlier updates included.
      passed_over: reason → how many other files there are.
      embedded: how many the encoder has seen.
      seconds: of the whole update.
      dropped: the approximate index was of other rows and is gone.
    """

    added: int
    kept: int
    changed: int
    removed: int
    rejected: dict[str, int]
    passed_over: dict[str, int]
    embedded: int
    seconds: float
    dropped: bool

    def text(self) -> str:
        """For people: a line each."""
        counts = [
            f"{count:,} {name}"
            for name, count in (
                ("added", self.added), ("kept", self.kept), ("changed", self.changed),
                ("removed", self.removed), ("rejected", sum(self.rejected.values())),
            )
        ]  # fmt: skip
        rate = self.embedded / self.seconds if self.seconds else 0.0
        lines = [f"pictures: {', '.join(counts)}"]
        lines += [f"  rejected: {count:,} × {why}" for why, count in self.rejected.items()]
        lines += [f"  passed over: {count:,} × {why}" for why, count in self.passed_over.items()]
        lines.append(
            f"  {self.embedded:,} embedded in {self.seconds:.1f} s ({rate:.1f} pictures/s)"
        )
        if self.dropped:
            lines.append("  the approximate index was of other pictures and is gone")
        return "\n".join(lines)


def update_index(
    folder: str | Path, pictures: Pictures, encoder: Encoder, *, part_rows: int = PART_ROWS
) -> Summary:
    """Makes an index what the pictures are now; makes it first where there is none.

    Only what is new or changed is embedded. Stopped at any moment, it goes on with the next call;
    the index is whole all the time, and lacks at most the part in the making. A picture that
    cannot be used is set aside with its reason.

    Args:
      folder: of the index.
      pictures: what it is to hold.
      encoder: the model.
      part_rows: most rows of a part.

    Raises:
      ConfigError: the folder is another model's, of other pictures, holds something else, is
        damaged, being updated by somebody else, or cannot be written.
    """
    folder, began = Path(folder), time.perf_counter()
    storage.read_manifest(folder)  # refuses what is somebody else's before a lock is put there
    with storage.updating(folder):
        manifest = _begin(folder, pictures, encoder)
        plan = planning.make_plan(folder, manifest, pictures, part_rows)
        stale = manifest.approximate if plan.groups else None
        begun = dataclasses.replace(
            manifest,
            pictures=pictures.title,
            rejected=plan.rejected,
            approximate=None if stale else manifest.approximate,
        )
        if begun != manifest:
            storage.write_manifest(folder, begun)
            storage.remove_leftovers(folder, begun)
        manifest, placed = _carry_out(folder, begun, plan, pictures, encoder)
    return Summary(
        added=len(placed - plan.known),
        kept=plan.kept,
        changed=len(placed & plan.known),
        removed=plan.removed,
        rejected=dict(collections.Counter(one.reason for one in manifest.rejected)),
        passed_over=pictures.passed_over,
        embedded=len(plan.new),
        seconds=time.perf_counter() - began,
        dropped=stale is not None,
    )


def _begin(folder: Path, pictures: Pictures, encoder: Encoder) -> storage.Manifest:
    """The manifest as it is, or a first one; leftovers of an update that was stopped are gone."""
    manifest = storage.read_manifest(folder)
    if manifest is None:
        manifest = storage.Manifest(encoder.name, encoder.fingerprint, 0, pictures.title)
        storage.write_manifest(folder, manifest)
    if manifest.fingerprint != encoder.fingerprint:
        raise other_model(folder, manifest, encoder.fingerprint, encoder.name)
    storage.remove_leftovers(folder, manifest)
    return manifest


def _carry_out(
    folder: Path,
    manifest: storage.Manifest,
    plan: planning.Plan,
    pictures: Pictures,
    encoder: Encoder,
) -> tuple[storage.Manifest, set[int]]:
    """Writes the groups one by one; the last manifest, and the numbers of pictures embedded."""
    placed: set[int] = set()
    place = {key: number for number, key in enumerate(pictures.keys)}
    bar = tqdm(total=len(plan.new), desc=encoder.name, unit="picture", dynamic_ncols=True, delay=1)
    with contextlib.closing(bar):
        for group in plan.groups:
            found = [
                _carried(folder, part, rows, manifest.dim, pictures)
                for part, rows in zip(group.parts, group.carried, strict=True)
                if rows
            ]
            rejected: list[storage.Rejected] = []
            if group.new:
                made, rejected = embed(encoder, pictures, group.new, bar.update)
                if made is not None:
                    found.append(made)
                    placed |= {place[key] for key in made.facts.keys}
            manifest = _swap(folder, manifest, group, found, rejected)
    return manifest, placed


def _carried(
    folder: Path,
    part: storage.File,
    rows: Sequence[tuple[int, int]],
    dim: int,
    pictures: Pictures,
) -> parts.Rows:
    """Rows of an old part, with stamps and captions of now."""
    old, chosen = parts.read_rows(folder, part, dim), [row for row, _ in rows]
    sums = [old.facts.sha256[row] for row in chosen]
    facts = facts_of(pictures, [number for _, number in rows], sums)
    thumbnails = [old.thumbnails[row] for row in chosen]
    return parts.Rows(facts, old.image_embeds[chosen], thumbnails)


def _swap(
    folder: Path,
    manifest: storage.Manifest,
    group: planning.Group,
    found: Sequence[parts.Rows],
    rejected: Sequence[storage.Rejected],
) -> storage.Manifest:
    """Puts one new part in the place of old ones; returns the manifest that says so."""
    stay = [part for part in manifest.parts if part not in group.parts]
    dim = manifest.dim
    if found:
        dim = found[0].image_embeds.shape[1]
        stay.append(parts.write(folder, _join(found)))
    manifest = dataclasses.replace(
        manifest, dim=dim, parts=tuple(stay), rejected=(*manifest.rejected, *rejected)
    )
    storage.write_manifest(folder, manifest)
    storage.remove_leftovers(folder, manifest)
    return manifest


def _join(found: Sequence[parts.Rows]) -> parts.Rows:
    facts = {
        field.name: list(itertools.chain(*(getattr(one.facts, field.name) for one in found)))
        for field in dataclasses.fields(parts.Facts)
    }
    return parts.Rows(
        parts.Facts(**facts),
        np.concatenate([one.image_embeds for one in found]),
        list(itertools.chain(*(one.thumbnails for one in found))),
    )
