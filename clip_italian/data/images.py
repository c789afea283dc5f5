"""Encoded pictures → batches of uint8 pixels, for training and for evaluation.

tf.data reads ahead, spreads pictures over its threads and keeps their order. What it passes on
are numbers of steps alone: each picture is written straight to its place in the batch.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from clip_italian.config import ConfigError
from clip_italian.data import augment
from clip_italian.data.pixels import ImageError, decode
from clip_italian.data.records import record_image

tf.config.set_visible_devices([], "GPU")  # TensorFlow would take all of its memory from JAX

# Step → serialized records [n] (an array of bytes objects) and their draws.
Read = Callable[[int], tuple[np.ndarray, augment.Draws]]

_TASK = 16  # pictures that a thread takes at once: handing one over costs it 0.1 ms


def training_images(
    read: Read, first_step: int, rows: int, *, augment: str, image_size: int, threads: int
) -> Iterator[np.ndarray]:
    """Pixels of one step after another, without end; they do not depend on `threads`.

    Args:
      read: step → serialized records [rows] and their draws; called ahead, in order.
      first_step: the first step.
      rows: records of a step.
      augment: name of a policy in `augment.POLICIES`.
      image_size: side of the output, pixels.
      threads: pictures decoded at once.

    Yields:
      uint8 [rows, image_size, image_size, 3].

    Raises:
      ImageError: a record of the step that would come next cannot be read or decoded.
    """
    steps = tf.data.Dataset.range(first_step, np.iinfo(np.int64).max)
    return _views(read, steps, rows, augment, image_size, threads)


def image_views(
    read: Read, count: int, rows: int, *, augment: str, image_size: int, threads: int
) -> Iterator[np.ndarray]:
    """As `training_images` for `count` calls `read(0)`, `read(1)`, ... of `rows` records each."""
    return _views(read, tf.data.Dataset.range(count), rows, augment, image_size, threads)


def decode_error(serialized: bytes) -> str | None:
    """Why the picture of one serialized record cannot be decoded; None if it can."""
    try:
        decode(record_image(serialized), 1 << 30)
    except Exception as error:  # of the protocol buffer, too
        return str(error) or repr(error)
    return None


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
    crop = functools.partial(augment.centre_crop, size=image_size)

    def numbers(step: int) -> np.ndarray:
        return np.arange(step * batch_size, min((step + 1) * batch_size, len(names)))

    def load(step: int) -> list[Callable[[], np.ndarray]]:
        return [functools.partial(crop, data) for data in read(numbers(step))]

    steps = -(-len(names) // batch_size)
    done = 0
    try:
        for pixels in _batches(load, tf.data.Dataset.range(steps), batch_size, image_size, threads):
            yield pixels
            done += 1
    except ImageError as error:  # which does not say which image it was
        for number in numbers(done):
            try:
                crop(read(np.array([number]))[0])
            except ImageError:
                raise ConfigError(
                    f"image {names[number]!r} cannot be decoded; it must be a whole JPEG, PNG or "
                    "WebP: replace it or take it away"
                ) from error
        raise


def _views(
    read: Read, steps: tf.data.Dataset, rows: int, policy: str, image_size: int, threads: int
) -> Iterator[np.ndarray]:
    apply = augment.POLICIES[policy]

    def picture(record: bytes, draws: augment.Draws) -> np.ndarray:
        return apply(record_image(record), draws, image_size)

    def load(step: int) -> list[Callable[[], np.ndarray]]:
        records, draws = read(step)
        each = map(augment.Draws._make, zip(*draws, strict=True))
        return [functools.partial(picture, *one) for one in zip(records, each, strict=True)]

    return _batches(load, steps, rows, image_size, threads)


class _Step:
    """A batch in the making: one function for each picture, and where pictures are put."""

    def __init__(self, pictures: Sequence[Callable[[], np.ndarray]], image_size: int) -> None:
        self.pictures = pictures
        self.pixels = np.empty((len(pictures), image_size, image_size, 3), np.uint8)
        self.error: Exception | None = None


def _batches(
    load: Callable[[int], Sequence[Callable[[], np.ndarray]]],
    steps: tf.data.Dataset,
    rows: int,
    image_size: int,
    threads: int,
) -> Iterator[np.ndarray]:
    """Runs the functions that `load` gives for each step, several at once; results in order.

    Args:
      load: step → up to `rows` functions, each of which makes uint8 [size, size, 3].
      steps: numbers of the steps.
      rows: most pictures of a step.
      image_size: side of the output, pixels.
      threads: functions run at once.

    Raises:
      ImageError: `load` or a function of the next step raised an exception, which is its cause.
    """
    ready: dict[int, _Step] = {}

    def begin(step: np.int64) -> np.int64:
        try:
            ready[int(step)] = _Step(load(int(step)), image_size)
        except Exception as error:
            ready[int(step)] = _Step([], image_size)
            ready[int(step)].error = error
        return step

    def work(step: np.int64, first: np.int64) -> np.int64:
        batch = ready[int(step)]
        try:
            for row in range(first, min(first + _TASK, len(batch.pictures))):
                batch.pixels[row] = batch.pictures[row]()
        except Exception as error:
            batch.error = error
        return step

    def tasks(step: tf.Tensor) -> tf.data.Dataset:
        firsts = tf.data.Dataset.range(0, rows, _TASK)
        return firsts.map(lambda first: (step, first))

    begun = steps.map(lambda step: tf.numpy_function(begin, [step], tf.int64)).prefetch(1)
    done = begun.flat_map(tasks).map(
        lambda *task: tf.numpy_function(work, task, tf.int64),
        num_parallel_calls=2 * threads,  # what is done early waits for its turn: work meanwhile
        deterministic=True,
    )
    done = done.batch(-(-rows // _TASK)).with_options(_options(threads))
    made = done.as_numpy_iterator()
    try:
        for numbers in made:
            batch = ready.pop(int(numbers[0]))
            if batch.error is not None:
                raise ImageError(str(batch.error)) from batch.error
            yield batch.pixels
    finally:
        del made  # its threads end here
        ready.clear()  # TensorFlow never lets go of the functions, so they must hold no pixels


def _options(threads: int) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return options
