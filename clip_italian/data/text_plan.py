"""The length groups of a run, from its records' caption indexes. No TensorFlow."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from clip_italian.config import Config, ConfigError
from clip_italian.data.caption_index import CaptionIndex, open_index
from clip_italian.data.length_groups import LengthPlan, choose_groups
from clip_italian.data.tokens import load_tokenizer


class TextCosts(Protocol):
    """What a plan must know of a model."""

    def text_flops(self, lengths: np.ndarray) -> np.ndarray:
        """FLOPs of the text tower's forward pass: tokens of captions, int [n] → float [n]."""
        ...


def run_plan(
    config: Config, captions: Sequence[CaptionIndex], sizes: TextCosts, shares: int
) -> LengthPlan:
    """Length groups for the mixture of sources of a resolved config.

    Args:
      config: resolved.
      captions: of each training source.
      sizes: of the model.
      shares: devices of all hosts times micro-batches.

    Raises:
      ConfigError: `batch_size` does not split over the shares.
    """
    batch_size = config.train.batch_size
    if batch_size % shares:
        raise ConfigError(
            f"batch_size = {batch_size} does not split over {shares} shares (devices times "
            f"micro-batches); give a multiple of {shares}"
        )
    return choose_groups(
        _mixture(config, captions),
        rows=batch_size,
        shares=shares,
        most_groups=config.data.length_groups,
        cost=sizes.text_flops,
    )


class Described(NamedTuple):
    """The groups of a run, for its plan.

    Attributes:
      mean: real tokens of a caption, over the mixture.
      padded: tokens of a caption with its padding.
      text: the groups, in words.
    """

    mean: float
    padded: float
    text: str


def describe_groups(config: Config, sizes: TextCosts, devices: int) -> Described | None:
    """The groups, or None where records, their index or the tokenizer are not at hand.

    Args:
      config: resolved.
      sizes: of the model.
      devices: of all hosts.
    """
    micro = config.train.micro_batch or config.train.batch_size
    shares = devices * (config.train.batch_size // micro)
    captions = _indexes(config)
    if not captions or config.train.batch_size % shares:
        return None
    plan = run_plan(config, captions, sizes, shares)
    groups = ", ".join(
        f"{n} of {length}" for n, length in zip(plan.rows, plan.lengths, strict=True)
    )
    histogram = _mixture(config, captions)
    padding = plan.padding(histogram)
    mean = float(histogram @ np.arange(len(histogram)) / histogram.sum())
    text = (
        f"Captions of a batch by length in tokens: {groups}; {padding:.0%} of the slots are "
        f"padding; at most {plan.overflow:.2%} of the batches do not fit and are padded to "
        f"{config.data.max_length}"
    )
    return Described(mean, mean / (1 - padding), text)


def _mixture(config: Config, captions: Sequence[CaptionIndex]) -> np.ndarray:
    weights = config.data.weights or (1.0,) * len(captions)
    return sum(
        (weight * one.histogram for weight, one in zip(weights, captions, strict=True)),
        np.zeros(config.data.max_length + 1),
    )


def _indexes(config: Config) -> list[CaptionIndex]:
    """The caption index of each training source; empty unless all are there."""
    try:
        from clip_italian.data.records import open_split
    except ImportError:  # without the extra `data`
        return []
    if "://" in config.data.data_dir:
        return []
    found = []
    try:
        files = [open_split(config.data.data_dir, name, "train") for name in config.data.sources]
        tokenizer = load_tokenizer(config.model.tokenizer, revision=config.model.text_revision)
    except ConfigError:
        return []
    for file in files:
        length, cache = config.data.max_length, config.data.data_cache
        one = open_index(file.folder, file.split, file.fingerprint, tokenizer, length, cache)
        if one is None:
            return []
        found.append(one)
    return found
