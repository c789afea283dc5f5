"""Batches on the device ahead of the step that takes them."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from clip_italian.batch import Batch
from clip_italian.training.cost import Work
from clip_italian.training.parallel import Parallel

T = TypeVar("T")


class Fed(NamedTuple):
    """A batch on its way to a step.

    Attributes:
      placed: on the devices.
      digest: of this host's examples.
      work: what its step costs, or None where nobody knows.
    """

    placed: Any
    digest: int
    work: Work | None


def feed(
    batches: Iterable[Batch],
    first_step: int,
    parallel: Parallel,
    ahead: int,
    work_of: Callable[[int, Batch], Work | None],
) -> Generator[Fed, None, None]:
    """Places batches on the devices in a thread, at most `ahead` of them before they are asked for.

    Args:
      batches: numpy, this host's rows, from `first_step` on.
      first_step: step of the first one.
      parallel: the layout.
      ahead: how many wait on the devices at most.
      work_of: (step, batch) → its cost.
    """

    def made() -> Iterator[Fed]:
        for step, batch in enumerate(batches, start=first_step):
            yield Fed(parallel.place(batch), batch_digest(batch), work_of(step, batch))

    return prefetch(made(), ahead)


def batch_digest(batch: Batch) -> int:
    """Sum of a 32-bit hash of each row's image and caption ids: equal digests, equal examples.

    Rows of a batch lie as devices and lengths of captions want it, so their order says nothing;
    the digest of a batch is the sum of those of its parts, modulo 2³².
    """
    ids = np.concatenate([batch.image_id, batch.caption_id], axis=1)
    mixed = np.zeros(len(ids), np.uint64)
    for column in ids.T:
        # splitmix64, of what came before and the next id.
        mixed = (mixed ^ column.astype(np.uint32)) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return int(np.sum(mixed >> np.uint64(32))) % 2**32


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
