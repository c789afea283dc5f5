"""All data of a run, opened and checked before anything is compiled."""

import dataclasses
import functools
from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from clip_italian.batch import Batch
from clip_italian.collection import Collection
from clip_italian.config import Config, ConfigError
from clip_italian.data.collections import collect, open_records, open_tfds
from clip_italian.data.evaluation_set import EvaluationSet
from clip_italian.data.pipeline import training_batches
from clip_italian.data.sources import data_fingerprint, open_sources
from clip_italian.data.tokens import check_vocabulary, load_tokenizer


@dataclasses.dataclass(frozen=True)
class RunData:
    """What a run reads.

    Attributes:
      batches_from: first step → endless batches from that step on, this host's rows.
      sets: validation sets, one for each source, in the order of `sources`; then `eval_sets`.
      fingerprint: of all training and validation records.
    """

    batches_from: Callable[[int], Generator[Batch, None, None]]
    sets: tuple[EvaluationSet, ...]
    fingerprint: str

    @property
    def captioned(self) -> tuple[EvaluationSet, ...]:
        """Those sets that have captions."""
        return tuple(one for one in self.sets if len(one.captions))


class Sizes(Protocol):
    """What data must know of a model: `image_size`, `vocab_size`, `max_positions`."""

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the text tower's token table."""
        ...

    @property
    def max_positions(self) -> int:
        """Longest caption, in tokens."""
        ...


def open_data(
    config: Config,
    sizes: Sizes,
    open_named: Callable[..., Sequence[Collection]] = lambda names, **openers: [],
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> RunData:
    """Opens tokenizer, records and evaluation sets of a resolved config.

    Args:
      config: what to open.
      sizes: of the model.
      open_named: `eval_sets` → collections; given `eval_dir`, `language` and how this room opens
        records and TFDS, both (name, split) → collection.
      process_index: which of the hosts this is.
      process_count: number of hosts.

    Raises:
      ConfigError: an unknown or empty source, a tokenizer that is missing or has another
        vocabulary than the tower, captions longer than the tower can take.
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
    return RunData(
        training_batches(
            config,
            train,
            tokenizer,
            sizes.image_size,
            process_index=process_index,
            process_count=process_count,
        ),
        tuple(EvaluationSet(config, one, tokenizer, sizes.image_size) for one in collections),
        data_fingerprint([*train, *validation]),
    )
