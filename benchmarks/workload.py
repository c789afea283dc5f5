"""Models and batches of the step benchmarks: the paper's towers, captions as long as real ones."""

import dataclasses
import functools
import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_italian import config as configs
from clip_italian.batch import Batch, TokenGroup
from clip_italian.data.length_groups import LengthPlan, choose_groups, layout, one_group
from clip_italian.model import towers
from clip_italian.model.model import Model
from clip_italian.training import loop
from clip_italian.training.cost import work_of
from clip_italian.training.parallel import make_parallel
from clip_italian.training.step import init_state, loss_step

MAX_LENGTH = 96
_TINY = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip
_MIDDLE = {
    "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024,
}  # fmt: skip
# Name → vision configuration, text configuration, width of the shared space. "base" is the paper's.
SIZES: Mapping[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "base": (
        {"model_type": "clip_vision_model", "image_size": 224, "patch_size": 32},
        {"model_type": "bert", "vocab_size": 32_102},
        512,
    ),
    "middle": (
        {"model_type": "clip_vision_model", "image_size": 128, "patch_size": 32, **_MIDDLE},
        {"model_type": "bert", "vocab_size": 8_000, **_MIDDLE},
        256,
    ),
    "tiny": (
        {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 16, **_TINY},
        {"model_type": "bert", "vocab_size": 999, "max_position_embeddings": MAX_LENGTH, **_TINY},
        16,
    ),
}
# Tokens, [CLS] and [SEP] included → captions: the 8,486 captions of MSCOCO-IT's unvalidated dev
# set, as `measured_lengths` counts them.
LENGTHS = {
    8: 10, 9: 113, 10: 349, 11: 731, 12: 1159, 13: 1326, 14: 1378, 15: 1133, 16: 736, 17: 505,
    18: 332, 19: 220, 20: 158, 21: 100, 22: 59, 23: 55, 24: 26, 25: 27, 26: 9, 27: 13, 28: 8,
    29: 7, 30: 8, 31: 4, 32: 4, 33: 2, 34: 2, 35: 1, 36: 1, 37: 4, 39: 1, 40: 1, 47: 1, 49: 1,
    57: 1, 61: 1,
}  # fmt: skip


def measured_lengths(folder: str) -> dict[int, int]:
    """Lengths of the real captions: raw/mscoco-it and text/alberto_vocab.txt in `folder`.

    A WordPiece tokenizer of that vocabulary (128,000 pieces, lower case, accents kept), split at
    spaces and punctuation as BERT does; two more for [CLS] and [SEP].
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    pieces = Path(folder, "text/alberto_vocab.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore
    path = Path(folder, "raw/mscoco-it/captions_ita_devset_unvalidated.json.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        captions = list(_captions(json.load(file)))
    return dict(sorted(Counter(len(e.ids) + 2 for e in tokenizer.encode_batch(captions)).items()))


def _captions(node: Any) -> Iterator[str]:
    """Every string under the key "caption", at any depth."""
    if isinstance(node, list):
        for child in node:
            yield from _captions(child)
    elif isinstance(node, dict):
        for key, child in node.items():
            if key == "caption" and isinstance(child, str):
                yield child
            else:
                yield from _captions(child)


def caption_lengths() -> np.ndarray:
    """Share of captions of each length, [MAX_LENGTH + 1], from the real data or `LENGTHS`."""
    folder = os.environ.get("CLIP_ITALIAN_REAL_DATA")
    counts = np.zeros(MAX_LENGTH + 1)
    for length, count in (measured_lengths(folder) if folder else LENGTHS).items():
        counts[min(length, MAX_LENGTH)] += count
    return counts / counts.sum()


def make_config(
    size: str,
    pairs: int,
    *,
    frozen: Sequence[str] = (),
    model: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    **optim: Any,
) -> configs.Config:
    """A resolved config of our step; `frozen` names towers, the others further fields."""
    vision, text, dim = SIZES[size]
    thaw = {f"{side}_thaw_step": None for side in frozen}
    return configs.resolve(
        configs.Config(
            model=configs.ModelConfig(
                vision_config=vision, text_config=text, projection_dim=dim, **(model or {})
            ),
            data=configs.DataConfig(max_length=MAX_LENGTH),
            optim=configs.OptimConfig(learning_rate=1e-5, schedule="constant", **thaw, **optim),
            train=configs.TrainConfig(batch_size=pairs, **(train or {})),
        )
    )


def build(config: configs.Config) -> Model:
    """The model of a config."""
    return towers.build(config.model, loss=config.loss.loss)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """One batch in the forms that the contestants take; rows in order of caption length.

    Attributes:
      batch: in length groups.
      padded: the same with all captions padded to `MAX_LENGTH`.
      plan: the groups.
    """

    batch: Batch
    padded: Batch
    plan: LengthPlan


def make_pairs(model: Model, pairs: int, *, shares: int = 1, length: int = 0) -> Pairs:
    """Random pictures and tokens, captions as long as real ones, or all of `length` tokens.

    Lengths are the real ones' quantiles: as many long captions as there are on average.

    Args:
      model: for the sizes of pictures and vocabulary, and the cost of a caption.
      pairs: rows.
      shares: devices times micro-batches (see `Batch`).
      length: tokens of every caption; 0 takes real lengths.
    """
    rng = np.random.default_rng(0)
    if length:
        plan, lengths = one_group(length, pairs), np.full(pairs, length)
    else:
        histogram = caption_lengths()
        plan = choose_groups(
            histogram, rows=pairs, shares=shares, most_groups=4, cost=model.text_flops
        )
        quantiles = (np.arange(pairs) + 0.5) / pairs
        lengths = rng.permutation(np.searchsorted(np.cumsum(histogram), quantiles))
    mask = (np.arange(MAX_LENGTH)[None] < lengths[:, None]).astype(np.int32)
    ids = rng.integers(5, model.vocab_size, mask.shape, np.int32) * mask
    order = plan.deal(lengths)[0]
    ends = np.cumsum(plan.rows)[:-1]
    groups = tuple(
        TokenGroup(ids[rows, :longest], mask[rows, :longest])
        for rows, longest in zip(np.split(order, ends), plan.lengths, strict=True)
    )
    order = layout(order, plan, shares).ravel()
    numbers = np.arange(pairs, dtype=np.int32)
    hashes = np.stack([np.zeros_like(numbers), numbers], axis=1)  # nobody's duplicate
    size = model.image_size
    some = rng.integers(0, 256, (min(pairs, 1024), size, size, 3), dtype=np.uint8)
    batch = Batch(groups, hashes, hashes, np.resize(some, (pairs, size, size, 3)))
    padded = batch._replace(text=(TokenGroup(ids[order], mask[order]),))
    if not plan.fits(lengths):
        raise SystemExit(f"{pairs} captions do not fit their groups: give a larger --batch")
    return Pairs(batch, padded, plan)


class Ours:
    """Our step on one device, or on more: one state, moved by the steps of several batches.

    Attributes:
      config: resolved.
      model: of the config.
      state: on the devices; replaced by every step.
    """

    def __init__(self, config: configs.Config, params: Any, devices: Sequence[Any] | None = None):
        self.config, self.model = config, build(config)
        self._parallel = make_parallel(
            config.train.parallel,
            devices or jax.devices()[:1],
            shard_params=config.train.shard_params,
        )
        optimizer, phases = loop.plan(config)
        self._phase = phases[0]
        state = init_state(params, optimizer, self._phase, config.train.seed)
        self.state = self._parallel.place_state(state)
        jax.block_until_ready(self.state)

    def lower(self, batch: Batch) -> Any:
        """The step for batches like this one, traced and not yet compiled."""
        step = loop.compile_step(self.config, self._parallel, self.model.apply_pairs, self._phase)
        return step.lower(self.state, self._parallel.place(batch))

    def stepper(self, batch: Batch, compiled: Any = None, times: int = 1) -> Callable[[], float]:
        """A function that makes steps on the batch and returns the last loss when all are done."""
        compiled = compiled or self.lower(batch).compile()
        placed = self._parallel.place(batch)

        def step() -> float:
            metrics: Any = {}
            for _ in range(times):
                self.state, metrics = compiled(self.state, placed)
            jax.block_until_ready(self.state)
            return float(metrics["train/loss"])

        return step

    def loss(self, batch: Batch) -> float:
        """The loss with dropout off, at the present parameters."""
        valid = jnp.ones(len(batch.image_id), bool)
        step = functools.partial(
            loss_step, config=self.config, apply_fn=self.model.apply_pairs, shards=1
        )
        return float(jax.jit(step)(self.state.params, batch, valid)[0]) / len(valid)

    def flops(self, batch: Batch) -> float:
        """Model FLOPs of a step on real tokens."""
        return work_of(batch, self._phase.moving, self.model).flops

    def features(self, batch: Batch, side: str) -> np.ndarray:
        """Pooled outputs of a tower, as they are cached: [pairs, width], rows as in the batch."""
        method, inputs = {
            "image": ("pool_image", batch.pixel_values),
            "text": ("pool_text", batch.text),
        }[side]
        pool = functools.partial(self.model.module.apply, method=method)
        return np.asarray(jax.jit(pool)({"params": self.state.params}, inputs))


def cached(batch: Batch, *, image: np.ndarray | None = None, text: np.ndarray | None = None):
    """The batch with pooled outputs in place of pictures, captions, or both."""
    if image is not None:
        batch = batch._replace(pixel_values=None, image_features=image)
    if text is not None:
        batch = batch._replace(text=(), text_features=text)
    return batch
