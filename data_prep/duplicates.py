"""Near-equal pictures: by perceptual hash, confirmed by thumbnail."""

import itertools
from collections.abc import Callable

import duckdb
import numpy as np
import pyarrow as pa

RADIUS = 3  # bits: of five bands, two hashes this near agree in at least two
_BANDS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))  # first bit, bits
# Mean difference of two thumbnails of one picture, in levels of 255. Of 643 photos, each re-encoded
# at quality 50, 75 and 90 and half to full size, 95 to 99% kept their hash within RADIUS bits, and
# all of those stayed within 2.2 levels.
THUMBNAIL_LEVELS = 3.0


def near_hashes(hashes: np.ndarray) -> dict[int, list[int]]:
    """For each of some distinct 64-bit hashes, the others within `RADIUS` bits.

    Args:
      hashes: int64 [hashes], distinct.

    Returns:
      hash → near hashes; hashes without any are left out.
    """
    bits = hashes.view(np.uint64)
    bands = [(bits >> np.uint64(first)) & np.uint64(2**width - 1) for first, width in _BANDS]
    # Pairs of bands: a single one is shared by too many, as flat margins give equal bits.
    pairs = [one << np.uint64(13) | other for one, other in itertools.combinations(bands, 2)]
    table = pa.table({
        "hash": np.tile(hashes, len(pairs)),
        "band": np.repeat(np.arange(len(pairs), dtype=np.int8), len(hashes)),
        "value": np.concatenate(pairs).astype(np.int32),
    })  # fmt: skip
    with duckdb.connect() as connection:
        connection.register("bands", table)
        found = connection.execute(
            "SELECT DISTINCT a.hash, b.hash FROM bands a JOIN bands b USING (band, value) "
            "WHERE a.hash < b.hash AND bit_count(xor(a.hash, b.hash)) <= ?",
            [RADIUS],
        ).fetchall()
    near: dict[int, list[int]] = {}
    for one, other in sorted(found):
        near.setdefault(one, []).append(other)
        near.setdefault(other, []).append(one)
    return near


class SeenPictures:
    """Pictures met so far, to ask whether another one is near-equal to one of them."""

    def __init__(self, near: dict[int, list[int]]) -> None:
        """Args: near: of all hashes that will come, from `near_hashes`."""
        self._near = near
        self._thumbnails: dict[int, np.ndarray] = {}  # with room for more
        self._labels: dict[int, list[str]] = {}

    def add(self, image_hash: int, thumbnail: bytes, label: str = "") -> None:
        """Remembers a picture."""
        labels = self._labels.setdefault(image_hash, [])
        room = self._thumbnails.get(image_hash, np.empty((1, len(thumbnail)), np.uint8))
        if len(labels) == len(room):
            room = np.concatenate([room, np.empty_like(room)])
        room[len(labels)] = np.frombuffer(thumbnail, np.uint8)
        self._thumbnails[image_hash] = room
        labels.append(label)

    def find(self, image_hash: int, thumbnail: bytes, radius: int) -> str | None:
        """Label of the nearest picture within `radius` bits that is near-equal, or None."""
        pixels = np.frombuffer(thumbnail, np.uint8).astype(np.int16)
        for other in (image_hash, *self._near.get(image_hash, ())):
            labels = self._labels.get(other)
            if labels and _distance(image_hash, other) <= radius:
                there = self._thumbnails[other][: len(labels)]
                levels = np.abs(there - pixels).mean(axis=1)
                if (levels <= THUMBNAIL_LEVELS).any():
                    return labels[int(levels.argmin())]
        return None


def _distance(one: int, other: int) -> int:
    return ((one ^ other) & (2**64 - 1)).bit_count()


def find_duplicates(
    hashes: np.ndarray, thumbnail: Callable[[int], bytes], radius: int, guarded: pa.Table
) -> list[str]:
    """For each picture in order "" or the reason why it goes.

    Args:
      hashes: perceptual hash of each picture, int64 [pictures].
      thumbnail: position of a picture → its thumbnail, 192 bytes.
      radius: bits in which hashes of near-equal pictures may differ; -1 keeps all.
      guarded: pictures of evaluation sets: `name`, `image_hash`, `thumbnail`.

    Returns:
      `in evaluation set NAME`, `near-duplicate picture` (of an earlier one that stays) or "".
    """
    guard_hashes = guarded["image_hash"].to_numpy()
    values, counts = np.unique(np.concatenate([hashes, guard_hashes]), return_counts=True)
    near = near_hashes(values)
    # All but a few pictures have a hash that is near to no other: they need not be remembered.
    crowded = near.keys() | set(values[counts > 1].tolist())
    evaluation, seen = SeenPictures(near), SeenPictures(near)
    for row in guarded.to_pylist():
        evaluation.add(row["image_hash"], row["thumbnail"], row["name"])
    reasons = [""] * len(hashes)
    for position, image_hash in enumerate(hashes.tolist()):
        if image_hash not in crowded:
            continue
        pixels = thumbnail(position)
        name = evaluation.find(image_hash, pixels, RADIUS)
        if name is not None:
            reasons[position] = f"in evaluation set {name}"
        elif seen.find(image_hash, pixels, radius) is not None:
            reasons[position] = "near-duplicate picture"
        else:
            seen.add(image_hash, pixels)
    return reasons
