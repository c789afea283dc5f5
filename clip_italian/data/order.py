"""The order of training examples: a pure function of (seed, position). No files, no state.

Position p of a run counts pairs from its first step on: row r of global step t is p = t·B + r.
An epoch holds every source s `round(weight_s · n_s)` times; epochs follow one another without a
seam. Within epoch e,

    slot   = shuffle(seed, e)(p mod epoch length)        which place of the epoch
    source = the one whose run of slots holds it;  j = slot - start of that run
    copy   = j // n_s                                    0 for the first pass over the source, ...
    record = shuffle(seed, e, source, copy)(j mod n_s)

so that each pass over a source shows each of its records once and a fractional pass shows a
fresh random subset every epoch. Caption and augmentation come from hashes of (seed, position).
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from clip_italian.config import ConfigError
from clip_italian.data.records import hash_words

# permute(index int64 [n], key words uint32 [n, 3], largest index (inclusive) int64 [n]) → int64 [n]
Permute = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

# First word of every key, so that streams made for different purposes share nothing.
_EPOCH, _COPY, _CAPTION, _AUGMENT, _REPLACEMENT, _VIEW, _VIEW_AUGMENT = range(1, 8)


@dataclasses.dataclass(frozen=True)
class Places:
    """Where positions lead; all arrays int64 [n].

    Attributes:
      source: index of the source.
      record: index of the record in its source.
      epoch: pass over the whole mixture.
      copy: pass over the source within the epoch.
    """

    source: np.ndarray
    record: np.ndarray
    epoch: np.ndarray
    copy: np.ndarray


class Order:
    """Position → record, caption, augmentation.

    Attributes:
      epoch_length: positions of one epoch.
    """

    def __init__(
        self,
        counts: Sequence[int],
        weights: Sequence[float],
        seed: int,
        permute: Permute,
    ) -> None:
        """Order over sources of `counts` records seen `weights` times an epoch.

        Raises:
          ConfigError: on `weights` that leave a source without a single position.
        """
        slots = [int(weight * n + 0.5) for n, weight in zip(counts, weights, strict=True)]
        if 0 in slots:
            raise ConfigError(
                f"weights = {tuple(weights)} is not allowed: with {tuple(counts)} records the "
                f"sources get {slots} positions an epoch; raise the weight or leave the source out"
            )
        self._counts = np.array(counts, np.int64)
        self._ends = np.cumsum(slots, dtype=np.int64)
        self._seed = np.uint64(seed % 2**64)
        self._permute = permute
        self.epoch_length = int(self._ends[-1])

    def places(self, positions: np.ndarray) -> Places:
        """Source and record of each position (int64 [n], 0 or more)."""
        epoch, index = np.divmod(positions, self.epoch_length)
        slot = self._shuffle(index, (_EPOCH, epoch), np.full_like(index, self.epoch_length))
        source = np.searchsorted(self._ends, slot, side="right")
        within = slot - np.where(source > 0, self._ends[source - 1], 0)
        count = self._counts[source]
        copy, index = np.divmod(within, count)
        record = self._shuffle(index, (_COPY, epoch, source, copy), count)
        return Places(source, record, epoch, copy)

    def caption_choice(self, positions: np.ndarray) -> np.ndarray:
        """uint64 [n]: modulo the number of captions it says which one is shown."""
        return hash_words64(self._seed, _CAPTION, positions)

    def uniforms(self, positions: np.ndarray, number: int) -> np.ndarray:
        """Float64 [n, number] in [0, 1): the random numbers behind each augmentation."""
        return _uniforms(hash_words64(self._seed, _AUGMENT, positions[:, None], np.arange(number)))

    def views(self, positions: np.ndarray, number: int) -> np.ndarray:
        """int64 [n], 0 to number - 1: which of the stored views of its picture is shown."""
        return (hash_words64(self._seed, _VIEW, positions) % np.uint64(number)).astype(np.int64)

    def view_uniforms(self, source: str, records: np.ndarray, view: int, number: int) -> np.ndarray:
        """As `uniforms`, behind one stored view of these records (int64 [n]) of a source."""
        high, low = hash_words(source)  # by its name: its place among the sources may change
        key = (self._seed, _VIEW_AUGMENT, high, low, records[:, None], view, np.arange(number))
        return _uniforms(hash_words64(*key))

    def replacement(self, position: int, source: int, attempt: int | np.ndarray) -> np.ndarray:
        """Record to show in place of one that cannot be decoded, of the same source."""
        word = hash_words64(self._seed, _REPLACEMENT, np.int64(position), attempt)
        return (word % np.uint64(self._counts[source])).astype(np.int64)

    def _shuffle(self, index: np.ndarray, key: tuple, count: np.ndarray) -> np.ndarray:
        word = np.broadcast_to(hash_words64(self._seed, *key), index.shape)
        more = hash_words64(word)
        words = np.stack([word >> np.uint64(32), word, more], axis=1) & np.uint64(0xFFFFFFFF)
        return self._permute(index, words.astype(np.uint32), count - 1)


def _uniforms(words: np.ndarray) -> np.ndarray:
    return (words >> np.uint64(11)) * 2.0**-53


def hash_words64(*key: int | np.integer | np.ndarray) -> np.ndarray:
    """uint64 hash of integer words; arrays broadcast against each other.

    Chained SplitMix64 finaliser (Steele, Lea, Flood, "Fast splittable pseudorandom number
    generators", 2014): keys that differ in one bit give unrelated words.
    """
    with np.errstate(over="ignore"):  # arithmetic is modulo 2^64 by design
        word = np.uint64(0)
        for part in key:
            word = (word ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            word = word ^ (word >> np.uint64(31))
        return np.asarray(word)
