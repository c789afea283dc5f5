"""The validation loss: fixed batches, first caption of each image, padding masked out."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from clip_italian.batch import Batch
from clip_italian.config import Config
from clip_italian.training.parallel import Parallel
from clip_italian.training.step import ApplyFn, loss_step


class LossSet(Protocol):
    """A named set of padded batches."""

    @property
    def name(self) -> str:
        """Name of the source."""
        ...

    def loss_batches(self) -> Iterable[tuple[Batch, np.ndarray]]:
        """Batches of one size, each with bool [rows], False on padding; anew at each call."""
        ...


def make_loss_evaluator(
    config: Config, parallel: Parallel, apply_fn: ApplyFn, sets: Sequence[LossSet]
) -> Callable[[Any], Iterator[tuple[str, float]]]:
    """An evaluator that gives `validation/loss`, or one for each set where there are several.

    Args:
      config: a resolved config.
      parallel: the layout.
      apply_fn: the model.
      sets: what to evaluate on.
    """
    step = functools.partial(loss_step, config=config, apply_fn=apply_fn, shards=parallel.devices)
    compiled = parallel.compile_rows(lambda params, rows: step(params, *rows))

    def evaluate(params: Any) -> Iterator[tuple[str, float]]:
        for one in sets:
            sums = [
                np.asarray(compiled(params, (batch, valid)), np.float64)
                for batch, valid in one.loss_batches()
            ]
            total, count = np.sum(sums, axis=0)
            prefix = f"{one.name}/" if len(sets) > 1 else ""
            yield f"{prefix}validation/loss", float(total / count)

    return evaluate
