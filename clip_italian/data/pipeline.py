"""Records → batches of a training run: what the order says, with pixels or stored features."""

import contextlib
import dataclasses
import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import cast

import numpy as np
import tensorflow as tf

from clip_italian.batch import Batch
from clip_italian.config import Config
from clip_italian.data import augment
from clip_italian.data.broken import Broken
from clip_italian.data.features import Cached
from clip_italian.data.images import ImageError, decode_error, training_images
from clip_italian.data.order import Order
from clip_italian.data.records import record_captions
from clip_italian.data.selection import Chosen, Selection
from clip_italian.data.shards import RecordFile


def index_shuffle(index: np.ndarray, words: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Stateless permutation of 0..largest (inclusive!) keyed by three words per index.

    Eight rounds: with the four of `tf.random.experimental.index_shuffle` the orders of
    neighbouring keys are nearly the same.
    """
    return tf.raw_ops.RandomIndexShuffle(
        index=index, seed=words, max_index=largest, rounds=8
    ).numpy()


def make_order(config: Config, sources: Sequence[RecordFile]) -> Order:
    """The order of examples of this run. Raises `ConfigError` on `weights` that cannot be."""
    weights = config.data.weights or (1.0,) * len(sources)
    return Order([len(source) for source in sources], weights, config.train.seed, index_shuffle)


@dataclasses.dataclass(frozen=True)
class Training:
    """The training split of a run, as this host's batches.

    Attributes:
      config: resolved.
      sources: training splits in the order of `config.data.sources`.
      selection: step → what is shown.
      image_size: side of `pixel_values`, pixels.
      image_mean: what the vision tower normalises pixels with; decides nothing here.
      image_std: likewise.
      cached: outputs of frozen towers, read in the steps for which they stand.
    """

    config: Config
    sources: Sequence[RecordFile]
    selection: Selection
    image_size: int
    image_mean: tuple[float, ...] = ()
    image_std: tuple[float, ...] = ()
    cached: Cached = dataclasses.field(default_factory=Cached)
    found: Broken = dataclasses.field(default_factory=Broken)

    @property
    def broken(self) -> Sequence[tuple[str, str]]:
        """(name, reason) of the broken records that this host met so far."""
        return tuple(self.found.records)

    def names_of(self, step: int, skipped: Sequence[int] = ()) -> list[str]:
        """`source/image_id` of the examples of a step on all hosts, as they lie in the batch."""
        chosen = self.selection.of_all_hosts(step, skipped)
        pairs = zip(chosen.source.tolist(), chosen.record.tolist(), strict=True)
        return [name_of(self.sources[source], record) for source, record in pairs]

    def batches_from(
        self, first_step: int, skipped: Sequence[int] = ()
    ) -> Generator[Batch, None, None]:
        """Endless batches, a pure function of (config, sources, step, skipped).

        `skipped` says which batches of the order are left out. Raises `ConfigError` when too many
        records are broken, see `Broken`.

        No thread of ours is behind it; pictures are read and decoded ahead by tf.data's, until
        it is closed.
        """
        step = first_step
        while True:
            end = self.cached.next_change(step)
            if self.cached.has_images(step):
                yield from self._from_features(step, end, skipped)
            else:
                yield from self._from_pixels(step, end, skipped)
            assert end is not None
            step = end

    def _from_features(
        self, first: int, end: int | None, skipped: Sequence[int]
    ) -> Iterator[Batch]:
        for step in itertools.count(first) if end is None else range(first, end):
            chosen = self.selection.at(step, skipped)
            yield self._batch(step, chosen, None)

    def _from_pixels(self, first: int, end: int | None, skipped: Sequence[int]) -> Iterator[Batch]:
        step = first
        while step != end:
            chosen: dict[int, Chosen] = {}

            def read(step: int, chosen: dict[int, Chosen] = chosen):
                one = chosen[step] = self.selection.at(step, skipped)
                return read_records(self.sources, one.source, one.record), self._draws(one)

            pictures = training_images(
                read,
                step,
                self.selection.rows,
                augment=self.config.data.augment,
                image_size=self.image_size,
                threads=self.config.data.reader_threads,
            )
            try:
                with contextlib.closing(cast(Generator, pictures)):
                    for pixels in pictures:
                        shown = chosen.pop(step)
                        self.found.note_read(shown.source, shown.record)
                        yield self._batch(step, shown, pixels)
                        step += 1
                        if step == end:
                            return
            except ImageError:
                if not self._note_broken(self.selection.at(step, skipped)):
                    raise

    def _draws(self, chosen: Chosen) -> augment.Draws:
        uniforms = self.selection.order.uniforms(chosen.position, augment.NUM_UNIFORMS)
        return augment.draw(uniforms, self.config.data.flip)

    def _batch(self, step: int, chosen: Chosen, pixels: np.ndarray | None) -> Batch:
        image_id, caption_id = self.selection.ids(chosen)
        text = self.cached.has_text(step)
        return Batch(
            text=() if text else self.selection.text(chosen),
            image_id=image_id,
            caption_id=caption_id,
            pixel_values=pixels,
            image_features=None if pixels is not None else self.cached.images_of(chosen),
            text_features=self.cached.text_of(chosen) if text else None,
        )

    def _note_broken(self, chosen: Chosen) -> bool:
        """Finds records of a step that cannot be read or decoded; True if any is new.

        They are replaced from then on, each by a pure function of its position: a run that
        meets a broken record early and one that is resumed behind it see the same examples.
        """
        some = False
        for source, record in zip(chosen.source.tolist(), chosen.record.tolist(), strict=True):
            file = self.sources[source]
            reason = broken_reason(file, record)
            if reason is not None and self.selection.note_broken(source, record):
                self.found.note_broken(name_of(file, record), reason)
                some = True
        self.found.check(sum(len(file) for file in self.sources))
        return some


def read_records(
    sources: Sequence[RecordFile], source: np.ndarray, record: np.ndarray
) -> np.ndarray:
    """Serialized records of several sources: an array of bytes objects [n]."""
    data = np.empty(len(record), object)
    for number in np.unique(source):
        at = source == number
        data[at] = sources[number].read(record[at])
    return data


def broken_reason(file: RecordFile, record: int) -> str | None:
    """Why a record cannot be read or its picture not decoded; None if both can."""
    try:
        (data,) = file.read([record])
    except (RuntimeError, ValueError) as error:
        return str(error)
    return decode_error(data)


def name_of(file: RecordFile, record: int) -> str:
    """`source/image_id` of a record, or its number where that cannot be read."""
    try:
        (data,) = file.read([record])
        return record_captions(data)[0].decode()
    except Exception:  # of the reader, or of the protocol buffer
        return f"record {record} of {file.source}/{file.split}"
