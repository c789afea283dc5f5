"""The validation loss: fixed batches, first caption of each image, padding masked out."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from clip_italian.batch import Batch
from clip_italian.config import Config
from clip_italian.training.parallel import Parallel
from clip_italian.training.step import ApplyFn, loss_step

LossBatches = Callable[[], Iterable[tuple[Batch, np.ndarray]]]


def make_loss_evaluator(
    config: Config, parallel: Parallel, apply_fn: ApplyFn, loss_batches: Mapping[str, LossBatches]
) -> Callable[[Any], Iterator[tuple[str, float]]]:
    """An evaluator that gives `validation/loss`, or one for each set where there are several.

    Args:
      config: a resolved config.
      parallel: the layout.
      apply_fn: the model.
      loss_batches: name of a set → its batches, each with bool [rows], False on padding.
    """
    step = functools.partial(loss_step, config=config, apply_fn=apply_fn, shards=parallel.devices)
    compiled = parallel.compile_rows(lambda params, rows: step(params, *rows))

    def evaluate(params: Any) -> Iterator[tuple[str, float]]:
        for name, batches in loss_batches.items():
            sums = [
                np.asarray(compiled(params, (batch, valid)), np.float64)
                for batch, valid in batches()
            ]
            total, count = np.sum(sums, axis=0)
            prefix = f"{name}/" if len(loss_batches) > 1 else ""
            yield f"{prefix}validation/loss", float(total / count)

    return evaluate
