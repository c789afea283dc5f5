"""Step → which records and captions this host shows, in which row, and in which group."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from clip_italian.batch import TokenGroup, batch_number
from clip_italian.config import Config
from clip_italian.data.caption_index import CaptionIndex
from clip_italian.data.length_groups import MULTIPLE, LengthPlan, layout, one_group
from clip_italian.data.order import Order

# Replacements tried for one position; the second lot where few captions fit.
_ATTEMPTS = (np.arange(100), np.arange(100, 10_000))


@dataclasses.dataclass(frozen=True)
class Chosen:
    """This host's rows of one step, as they lie in the batch; arrays int64 [rows].

    Attributes:
      position: in the order of the run.
      source: index of the source.
      record: in its source.
      caption: in its source's index.
      plan: the groups of the whole batch.
    """

    position: np.ndarray
    source: np.ndarray
    record: np.ndarray
    caption: np.ndarray
    plan: LengthPlan


class Selection:
    """The order of examples with captions, length groups and hosts; a pure function of the step.

    But for records noted as broken: each is replaced, wherever it stands, by a pure function of
    the position, with one whose caption fits the group. Which groups a batch has rests on what
    stood there first, so that hosts that know of different broken records agree.

    Attributes:
      order: position → record, caption, augmentation.
      captions: of each source.
      plan: groups of a batch that fits.
    """

    def __init__(
        self,
        config: Config,
        order: Order,
        captions: Sequence[CaptionIndex],
        plan: LengthPlan,
        *,
        shares: int = 1,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """Selection for one of the hosts.

        Args:
          config: resolved.
          order: of this run.
          captions: of each source, in the order of `config.data.sources`.
          plan: groups of the whole batch; their rows are multiples of `shares`.
          shares: devices of all hosts times micro-batches.
          process_index: which of the hosts this is; it owns the shares of its devices.
          process_count: number of hosts.

        Raises:
          ValueError: the batch does not split over the shares, or the shares over the hosts.
        """
        batch_size = config.train.batch_size
        if batch_size % shares or shares % process_count:
            raise ValueError(
                f"a batch of {batch_size} does not split over {shares} shares, or these over "
                f"{process_count} hosts"
            )
        self.order, self.captions, self.plan = order, captions, plan
        self._names = config.data.sources
        self._batch_size, self._shares = batch_size, shares
        self._overflow = one_group(config.data.max_length, batch_size)
        self._own = slice(
            *(k * shares // process_count for k in (process_index, process_index + 1))
        )
        self._own_shares = shares // process_count
        self._broken: dict[int, set[int]] = {}

    @property
    def rows(self) -> int:
        """Rows of this host's part of a batch."""
        return self._batch_size // self._shares * self._own_shares

    def at(self, step: int, skipped: Sequence[int] = ()) -> Chosen:
        """What this host shows in a step, where these batches of the order are left out."""
        return self._rows(step, skipped, self._own)

    def of_all_hosts(self, step: int, skipped: Sequence[int] = ()) -> Chosen:
        """The whole batch, as far as this host knows what is broken."""
        return self._rows(step, skipped, slice(None))

    def _rows(self, step: int, skipped: Sequence[int], shares: slice) -> Chosen:
        first = batch_number(step, skipped) * self._batch_size
        positions = first + np.arange(self._batch_size, dtype=np.int64)
        places = self.order.places(positions)
        captions = self._choose(positions, places.source, places.record)
        lengths = _by_source(places.source, lambda s, at: self.captions[s].lengths(captions[at]))
        plan = self.plan if self.plan.fits(lengths) else self._overflow
        order, most = plan.deal(lengths)
        own = layout(order, plan, self._shares)[shares].ravel()
        chosen = Chosen(positions[own], places.source[own], places.record[own], captions[own], plan)
        if self._broken:
            most = layout(most, plan, self._shares)[shares].ravel()
            chosen = self._without_broken(chosen, self._room(lengths[own]), most)
        return chosen

    def note_broken(self, source: int, record: int) -> bool:
        """Replaces a record from now on; False if it already is."""
        known = self._broken.setdefault(source, set())
        new = record not in known
        known.add(record)
        return new

    def ids(self, chosen: Chosen) -> tuple[np.ndarray, np.ndarray]:
        """`image_id` and `caption_id` of a batch, int32 [rows, 2]."""
        source = chosen.source
        return (
            _by_source(source, lambda s, at: self.captions[s].image_id[chosen.record[at]]),
            _by_source(source, lambda s, at: self.captions[s].caption_id[chosen.caption[at]]),
        )

    def text(self, chosen: Chosen) -> tuple[TokenGroup, ...]:
        """Token groups of a batch."""
        groups, start = [], 0
        source, caption = (x.reshape(self._own_shares, -1) for x in (chosen.source, chosen.caption))
        for length, rows in zip(chosen.plan.lengths, chosen.plan.rows, strict=True):
            stop = start + rows // self._shares
            some, which = source[:, start:stop].ravel(), caption[:, start:stop].ravel()
            groups.append(self._tokens(some, which, length))
            start = stop
        return tuple(groups)

    def _tokens(self, source: np.ndarray, caption: np.ndarray, length: int) -> TokenGroup:
        ids, mask = np.empty((2, len(source), length), np.int32)
        for number in np.unique(source):
            at = source == number
            ids[at], mask[at] = self.captions[number].tokens(caption[at], length)
        return TokenGroup(ids, mask)

    def _choose(self, positions: np.ndarray, source: np.ndarray, record: np.ndarray) -> np.ndarray:
        words = (self.order.caption_choice(positions) >> np.uint64(1)).astype(np.int64)
        return _by_source(source, lambda s, at: self.captions[s].choose(record[at], words[at]))

    def _room(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens for which the group of a caption of such a length has room, whatever the plan."""
        return np.minimum(-(-lengths // MULTIPLE) * MULTIPLE, self._overflow.lengths[0])

    def _without_broken(self, chosen: Chosen, room: np.ndarray, most: np.ndarray) -> Chosen:
        record, caption = chosen.record.copy(), chosen.caption.copy()
        for source, broken in self._broken.items():
            bad = np.isin(record, list(broken)) & (chosen.source == source)
            for row in np.flatnonzero(bad):
                limits = (int(room[row]), int(most[row]))
                place = (int(chosen.position[row]), source)
                record[row], caption[row] = self._replacement(*place, limits)
        return dataclasses.replace(chosen, record=record, caption=caption)

    def _replacement(self, position: int, source: int, limits: tuple[int, int]) -> tuple[int, int]:
        """Record and caption for a position, the caption of at most so many tokens.

        The first limit rests on the position alone. The second, the length of the group, depends
        on devices and micro-batches too: it counts only if no other caption is as short.
        """
        broken = list(self._broken[source])
        for most, attempts in itertools.product(limits, _ATTEMPTS):
            records = self.order.replacement(position, source, attempts)
            some = np.full(len(records), source)
            captions = self._choose(np.full(len(records), position), some, records)
            fits = self.captions[source].lengths(captions) <= most
            good = np.flatnonzero(fits & ~np.isin(records, broken))
            if len(good):
                return int(records[good[0]]), int(captions[good[0]])
        raise RuntimeError(
            f"{len(broken)} records cannot be decoded; prepare {self._names[source]!r} again (no "
            f"other with a caption of at most {limits[-1]} tokens was found to take their place)"
        )


def _by_source(
    source: np.ndarray, look_up: Callable[[int, np.ndarray | slice], np.ndarray]
) -> np.ndarray:
    """Rows of several sources, looked up in each: (source, which rows) → values of these rows."""
    numbers = np.unique(source)
    if len(numbers) == 1:
        return look_up(int(numbers[0]), slice(None))
    parts = [(source == number) for number in numbers]
    values = [look_up(int(number), at) for number, at in zip(numbers, parts, strict=True)]
    result = np.empty((len(source), *values[0].shape[1:]), values[0].dtype)
    for at, value in zip(parts, values, strict=True):
        result[at] = value
    return result
