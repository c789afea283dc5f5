"""Records → batches of a training run, and → pixels for evaluation, through tf.data.

One thread makes batches ahead of the loop: tf.data reads records by number and decodes and
augments them in parallel, in a fixed order; the captions chosen are tokenised together.
"""

import functools
import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import tensorflow as tf

from clip_italian.batch import Batch
from clip_italian.config import Config, ConfigError
from clip_italian.data import augment
from clip_italian.data.order import Order
from clip_italian.data.records import hash_words
from clip_italian.data.shards import RecordFile
from clip_italian.data.tokens import Tokenizer, encode

tf.config.set_visible_devices([], "GPU")  # TensorFlow would take all of its memory from JAX

T = TypeVar("T")
_MAX_REPLACEMENTS = 100


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


def training_batches(
    config: Config,
    sources: Sequence[RecordFile],
    tokenizer: Tokenizer,
    image_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Callable[[int], Generator[Batch, None, None]]:
    """Batches of the training split, a pure function of (config, sources, step).

    Args:
      config: resolved.
      sources: training splits in the order of `config.data.sources`.
      tokenizer: the text tower's.
      image_size: side of `pixel_values`, pixels.
      process_index: which of the hosts this is.
      process_count: number of hosts; host k gets rows [k·B/P, (k+1)·B/P) of each batch of B.

    Returns:
      A function: first step → endless iterator of `Batch` with B/P rows. Close the iterator to
      stop its thread.

    Raises:
      ConfigError: `batch_size` is not divisible by the hosts, or `weights` are impossible.
    """
    batch_size = config.train.batch_size
    if batch_size % process_count:
        raise ConfigError(
            f"batch_size = {batch_size} is not allowed with {process_count} hosts; "
            f"give a multiple of {process_count}"
        )
    rows = batch_size // process_count
    reader = _Reader(make_order(config, sources), sources, config.data.flip)

    def positions(step: int) -> np.ndarray:
        return step * batch_size + process_index * rows + np.arange(rows, dtype=np.int64)

    def produce(step: int) -> Iterator[Batch]:
        while True:
            dataset = _training_dataset(config, reader, positions, step, image_size)
            try:
                for pixels, captions, keys in dataset.as_numpy_iterator():
                    texts = [caption.decode() for caption in captions]
                    yield Batch(
                        text=(encode(tokenizer, texts, config.data.max_length),),
                        image_id=np.array([hash_words(key) for key in keys], np.int32),
                        caption_id=np.array([hash_words(text) for text in texts], np.int32),
                        pixel_values=pixels,
                    )
                    step += 1
            except tf.errors.OpError:
                if not reader.note_broken(positions(step)):
                    raise

    return lambda step: prefetch(produce(step), config.data.prefetch)


class _Reader:
    """Position → serialized record and random numbers; steps around records that are broken."""

    def __init__(self, order: Order, sources: Sequence[RecordFile], flip: bool) -> None:
        self._order = order
        self._sources = sources
        self._flip = flip
        self._broken: set[tuple[int, int]] = set()

    def read(self, positions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Serialized records [n], caption words int64 [n] and `Draws` of these positions."""
        source, record = self._choose(positions)
        data = np.empty(len(positions), object)
        for number in np.unique(source):
            data[source == number] = self._sources[number].read(record[source == number])
        word = (self._order.caption_choice(positions) >> np.uint64(1)).astype(np.int64)
        uniforms = self._order.uniforms(positions, augment.NUM_UNIFORMS)
        return data, word, *augment.draw(uniforms, self._flip)

    def _choose(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places = self._order.places(positions)
        if not self._broken:
            return places.source, places.record
        record = places.record.copy()
        for row, (position, source) in enumerate(zip(positions, places.source, strict=True)):
            attempt = 0
            while (int(source), int(record[row])) in self._broken:
                if attempt == _MAX_REPLACEMENTS:
                    raise RuntimeError(
                        f"{len(self._broken)} records cannot be decoded; prepare "
                        f"{self._sources[source].source!r} again"
                    )
                record[row] = self._order.replacement(position, int(source), attempt)
                attempt += 1
        return places.source, record

    def note_broken(self, positions: np.ndarray) -> bool:
        """Finds records behind `positions` that cannot be read or decoded; True if any is new.

        They are replaced from then on, each by a pure function of its position: a run that
        meets a broken record early and one that is resumed behind it see the same examples.
        """
        found = False
        for source, record in zip(*self._choose(positions), strict=True):
            try:
                (data,) = self._sources[source].read([record])
                tf.io.decode_jpeg(_parse(tf.constant([data]))["image"][0], channels=3)
            except (tf.errors.OpError, RuntimeError, ValueError) as error:
                name = f"{self._sources[source].source}/{self._sources[source].split}"
                logging.warning("record %d of %s is replaced: %s", record, name, error)
                self._broken.add((int(source), int(record)))
                found = True
        return found


def _training_dataset(
    config: Config,
    reader: _Reader,
    positions: Callable[[int], np.ndarray],
    first_step: int,
    image_size: int,
) -> tf.data.Dataset:
    """Elements: pixels uint8 [rows, size, size, 3], captions and "source/image_id" keys [rows]."""
    policy = augment.POLICIES[config.data.augment]
    rows = len(positions(first_step))
    kinds = [tf.string, tf.int64] + [
        tf.bool if name in ("flip", "autocontrast", "equalize") else tf.float32
        for name in augment.Draws._fields
    ]
    shapes = [[], []] + [
        {"crop": [2], "warp": [3, 3]}.get(name, []) for name in augment.Draws._fields
    ]

    def read(step: tf.Tensor) -> tuple[Any, ...]:
        outputs = tf.numpy_function(lambda step: reader.read(positions(step)), [step], kinds)
        outputs = [tf.ensure_shape(o, [rows, *s]) for o, s in zip(outputs, shapes, strict=True)]
        record = _parse(outputs[0])
        captions = record["captions"]
        choice = outputs[1] % captions.row_lengths()
        caption = tf.gather(captions.values, captions.row_starts() + choice)
        key = tf.strings.join([record["source"], record["image_id"]], "/")
        return record["image"], augment.Draws(*outputs[2:]), caption, key

    def decode(jpeg: tf.Tensor, draws: augment.Draws, caption: tf.Tensor, key: tf.Tensor):
        return policy(jpeg, draws, image_size), caption, key

    steps = tf.data.Dataset.range(first_step, np.iinfo(np.int64).max)
    threads = config.data.reader_threads
    records = steps.map(read).prefetch(1).unbatch()
    images = records.map(decode, num_parallel_calls=threads, deterministic=True)
    return images.batch(rows, drop_remainder=True).with_options(_options(threads))


def centre_crops(
    read: Callable[[np.ndarray], list[bytes]],
    names: Sequence[str],
    image_size: int,
    batch_size: int,
    threads: int,
) -> Iterator[np.ndarray]:
    """All images in order as evaluation sees them: uint8 [≤ batch_size, size, size, 3].

    Args:
      read: numbers int64 [n] → encoded images [n] (JPEG, PNG or WebP).
      names: one for each image, for messages.
      image_size: side of the output, pixels.
      batch_size: rows of every batch but the last.
      threads: images decoded at once.

    Raises:
      ConfigError: an image cannot be decoded; it is named.
    """

    def encoded(numbers: tf.Tensor) -> tf.Tensor:
        data = tf.numpy_function(lambda n: np.array(read(n), object), [numbers], tf.string)
        return tf.ensure_shape(data, [None])

    dataset = tf.data.Dataset.range(len(names)).batch(batch_size)
    crop = functools.partial(augment.centre_crop, size=image_size)
    images = dataset.map(encoded).prefetch(1).unbatch()
    images = images.map(crop, num_parallel_calls=threads, deterministic=True)
    done = 0
    try:
        for pixels in images.batch(batch_size).with_options(_options(threads)).as_numpy_iterator():
            yield pixels
            done += len(pixels)
    except tf.errors.OpError as error:  # which says neither which image nor why in plain words
        for number in range(done, min(done + batch_size, len(names))):
            (data,) = read(np.array([number]))
            try:
                crop(tf.constant(data))
            except tf.errors.OpError:
                raise ConfigError(
                    f"image {names[number]!r} cannot be decoded; it must be a whole JPEG, PNG or "
                    "WebP: replace it or take it away"
                ) from error
        raise


def _parse(serialized: tf.Tensor) -> dict[str, Any]:
    """Serialized records [n] → the features that batches need."""
    word = tf.io.FixedLenFeature([], tf.string)
    captions = tf.io.RaggedFeature(tf.string, row_splits_dtype=tf.int64)
    features = {"image": word, "source": word, "image_id": word, "captions": captions}
    return tf.io.parse_example(serialized, features)


def _options(threads: int) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return options


def prefetch(items: Iterator[T], size: int) -> Generator[T, None, None]:
    """Makes the items of an endless iterator ahead, in a thread; at most `size` are waiting.

    An exception of `items` is raised here. Closing this generator ends the thread.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(size)
    stop = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return
            except queue.Full:
                pass

    def work() -> None:
        try:
            for item in items:
                put(item, None)
                if stop.is_set():
                    break
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            yield cast(T, item)
    finally:
        stop.set()
        thread.join()
