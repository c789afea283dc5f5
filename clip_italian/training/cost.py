"""What a step costs by the numbers of the model, whatever the machine really computes."""

from collections.abc import Collection
from typing import NamedTuple, Protocol

import numpy as np

from clip_italian.batch import Batch

# Forward passes that a moving tower costs: the backward pass has two products for each.
_MOVING = 3


class Costs(Protocol):
    """FLOPs of one forward pass of a model's towers, 2 for each multiply-add."""

    @property
    def image_flops(self) -> float:
        """Of one picture."""
        ...

    @property
    def trained_image_flops(self) -> float:
        """Of one picture while the tower trains, which may leave patches out."""
        ...

    def text_flops(self, lengths: np.ndarray) -> np.ndarray:
        """Of captions with these numbers of tokens, int [n] → float64 [n]."""
        ...


class Work(NamedTuple):
    """What was done in one step or in several.

    Attributes:
      flops: of both towers on **real** tokens: 3 × forward where a tower moves, 1 × where it is
        frozen, 0 where its outputs are cached. What is computed again, padding, projections and
        the loss do not count.
      tokens: real tokens that went through the text tower.
      slots: tokens that went through it, padding included.
    """

    flops: float
    tokens: int
    slots: int


def work_of(batch: Batch, moving: Collection[str], costs: Costs, hosts: int = 1) -> Work:
    """The work of one training step.

    Args:
      batch: this host's rows, numpy.
      moving: groups that train.
      costs: of the model.
      hosts: which are taken to have captions like this one's.
    """
    flops, tokens, slots = 0.0, 0, 0
    if batch.pixel_values is not None:
        flops += len(batch.pixel_values) * image_flops(moving, costs)
    for group in batch.text:
        lengths = np.sum(group.attention_mask, axis=1)
        flops += text_flops(lengths, moving, costs)
        tokens += int(np.sum(lengths))
        slots += group.attention_mask.size
    return Work(hosts * flops, hosts * tokens, hosts * slots)


def image_flops(moving: Collection[str], costs: Costs) -> float:
    """What one picture costs the vision tower in a step."""
    return _MOVING * costs.trained_image_flops if "vision" in moving else costs.image_flops


def text_flops(lengths: np.ndarray, moving: Collection[str], costs: Costs) -> float:
    """What captions of these numbers of tokens cost the text tower in a step, together."""
    return (_MOVING if "text" in moving else 1) * float(np.sum(costs.text_flops(lengths)))
