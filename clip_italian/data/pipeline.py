"""Records → batches of a training run: what the order says, with pixels or stored features."""

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Generator, Iterator, Sequence
from typing import cast

import numpy as np
import tensorflow as tf

from clip_italian.batch import Batch
from clip_italian.config import Config
from clip_italian.data import augment
from clip_italian.data.features import Cached
from clip_italian.data.images import ImageError, decode_error, training_images
from clip_italian.data.order import Order
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

    def batches_from(self, first_step: int) -> Generator[Batch, None, None]:
        """Endless batches, a pure function of (config, sources, step).

        No thread of ours is behind it; pictures are read and decoded ahead by tf.data's, until
        it is closed.
        """
        step = first_step
        while True:
            end = self.cached.next_change(step)
            if self.cached.has_images(step):
                yield from self._from_features(step, end)
            else:
                yield from self._from_pixels(step, end)
            assert end is not None
            step = end

    def _from_features(self, first: int, end: int | None) -> Iterator[Batch]:
        for step in itertools.count(first) if end is None else range(first, end):
            chosen = self.selection.at(step)
            yield self._batch(step, chosen, None)

    def _from_pixels(self, first: int, end: int | None) -> Iterator[Batch]:
        step = first
        while step != end:
            chosen: dict[int, Chosen] = {}

            def read(step: int, chosen: dict[int, Chosen] = chosen):
                one = chosen[step] = self.selection.at(step)
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
                        yield self._batch(step, chosen.pop(step), pixels)
                        step += 1
                        if step == end:
                            return
            except ImageError:
                if not self._note_broken(step):
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

    def _note_broken(self, step: int) -> bool:
        """Finds records of a step that cannot be read or decoded; True if any is new.

        They are replaced from then on, each by a pure function of its position: a run that
        meets a broken record early and one that is resumed behind it see the same examples.
        """
        chosen = self.selection.at(step)
        found = False
        for source, record in zip(chosen.source.tolist(), chosen.record.tolist(), strict=True):
            reason = broken_reason(self.sources[source], record)
            if reason is not None and self.selection.note_broken(source, record):
                name = f"{self.sources[source].source}/{self.sources[source].split}"
                logging.warning("record %d of %s is replaced: %s", record, name, reason)
                found = True
        return found


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
