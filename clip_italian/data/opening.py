"""All data of a run, opened and checked before anything is compiled."""

import dataclasses
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Protocol

import numpy as np

from clip_italian.batch import Batch
from clip_italian.collection import Collection
from clip_italian.config import Config, ConfigError
from clip_italian.data.caption_index import open_or_build
from clip_italian.data.collections import collect, open_records, open_tfds
from clip_italian.data.evaluation_set import EvaluationSet
from clip_italian.data.feature_cache import PoolImage, PoolText, make_cached
from clip_italian.data.pipeline import Training, make_order
from clip_italian.data.selection import Selection
from clip_italian.data.shards import RecordFile
from clip_italian.data.sources import data_fingerprint, open_sources
from clip_italian.data.text_plan import describe_groups, run_plan
from clip_italian.data.tokens import Tokenizer, check_vocabulary, load_tokenizer

__all__ = ["RunData", "Sizes", "cache_features", "describe_groups", "open_data"]


@dataclasses.dataclass(frozen=True)
class RunData:
    """What a run reads.

    Attributes:
      batches_from: first step, batches of the order to leave out → endless batches from that step
        on, this host's rows.
      sets: validation sets, one for each source, in the order of `sources`; then `eval_sets`.
      fingerprint: of all training and validation records.
      training: what is behind `batches_from`.
    """

    batches_from: Callable[..., Generator[Batch, None, None]]
    sets: tuple[EvaluationSet, ...]
    fingerprint: str
    training: Training

    @property
    def captioned(self) -> tuple[EvaluationSet, ...]:
        """Those sets that have captions."""
        return tuple(one for one in self.sets if len(one.captions))


class Sizes(Protocol):
    """What data must know of a model."""

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        ...

    @property
    def image_mean(self) -> tuple[float, ...]:
        """Mean of each channel, of pixels scaled to [0, 1]."""
        ...

    @property
    def image_std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, likewise."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the text tower's token table."""
        ...

    @property
    def max_positions(self) -> int:
        """Longest caption, in tokens."""
        ...

    def text_flops(self, lengths: np.ndarray) -> np.ndarray:
        """FLOPs of the text tower's forward pass: tokens of captions, int [n] → float [n]."""
        ...


def open_data(
    config: Config,
    sizes: Sizes,
    open_named: Callable[..., Sequence[Collection]] = lambda names, **openers: [],
    *,
    shares: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> RunData:
    """Opens tokenizer, records and evaluation sets of a resolved config.

    The captions of the training records are indexed at the first opening, with a progress bar.

    Args:
      config: what to open.
      sizes: of the model.
      open_named: `eval_sets` → collections; given `eval_dir`, `language` and how this room opens
        records and TFDS, both (name, split) → collection.
      shares: devices of all hosts times micro-batches of a step, see `Batch`.
      process_index: which of the hosts this is.
      process_count: number of hosts.

    Raises:
      ConfigError: an unknown or empty source, a tokenizer that is missing or has another
        vocabulary than the tower, captions longer than the tower can take, a batch that does not
        split over the shares, no place for the caption index.
    """
    length = config.data.max_length
    if length > sizes.max_positions:
        raise ConfigError(
            f"max_length = {length} is not allowed; the text tower takes up to "
            f"{sizes.max_positions} tokens"
        )
    tokenizer = load_tokenizer(config.model.tokenizer, revision=config.model.text_revision)
    check_vocabulary(tokenizer, sizes.vocab_size)
    train, validation = (open_sources(config.data, split) for split in ("train", "validation"))
    collections = [collect(file, config.eval.eval_images) for file in validation]
    collections += open_named(
        config.eval.eval_sets,
        eval_dir=config.eval.eval_dir,
        language=config.eval.eval_language,
        open_records=functools.partial(
            open_records, config.data.data_dir, data_cache=config.data.data_cache
        ),
        open_tfds=open_tfds,
    )
    training = _open_training(
        config, sizes, train, tokenizer, shares, (process_index, process_count)
    )
    return RunData(
        training.batches_from,
        tuple(EvaluationSet(config, one, tokenizer, sizes.image_size) for one in collections),
        data_fingerprint([*train, *validation]),
        training,
    )


def _open_training(
    config: Config,
    sizes: Sizes,
    sources: Sequence[RecordFile],
    tokenizer: Tokenizer,
    shares: int,
    process: tuple[int, int],
) -> Training:
    data = config.data
    captions = [
        open_or_build(file, tokenizer, data.max_length, data.data_cache) for file in sources
    ]
    selection = Selection(
        config,
        make_order(config, sources),
        captions,
        run_plan(config, captions, sizes, shares),
        shares=shares,
        process_index=process[0],
        process_count=process[1],
    )
    return Training(config, sources, selection, sizes.image_size, sizes.image_mean, sizes.image_std)


def cache_features(
    config: Config,
    data: RunData,
    *,
    pool_image: PoolImage,
    pool_text: PoolText,
    frozen_until: Mapping[str, int | None],
    fingerprints: Mapping[str, str],
    first_step: int = 0,
) -> RunData:
    """The same data, with the outputs of frozen towers read instead of computed.

    They are encoded where they are not stored yet: every training picture in `cached_views`
    views, every training caption. From the step on at which a tower moves, batches hold pixels or
    tokens again. Examples, rows and ids are the same either way. Without `cached_views` nothing
    changes.

    Args:
      config: resolved.
      data: from `open_data`, of one host.
      pool_image: the vision tower: uint8 [n, height, width, 3] → float [n, width], numpy both;
        always called with n = `eval_batch_size`.
      pool_text: the text tower: a group of n captions → float [n, width].
      frozen_until: "vision" and "text" → first step in which that tower moves; None: never.
      fingerprints: "vision" and "text" → sha256 of that tower's parameters.
      first_step: at which the run starts or goes on; what has thawed by then is not encoded.

    Raises:
      ConfigError: naming `cached_views`: several views of what is never augmented, several
        hosts, or another run that is writing the same files; naming `data_cache`: no place.
    """
    if not config.data.cached_views:
        return data
    if data.training.selection.rows != config.train.batch_size:
        raise ConfigError(
            f"cached_views = {config.data.cached_views} is not allowed on several hosts; give 0, "
            "or run on one"
        )
    cached = make_cached(
        data.training,
        pool_image=pool_image,
        pool_text=pool_text,
        frozen_until=frozen_until,
        fingerprints=fingerprints,
        first_step=first_step,
    )
    training = dataclasses.replace(data.training, cached=cached)
    return dataclasses.replace(data, training=training, batches_from=training.batches_from)
