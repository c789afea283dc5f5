"""Is the exported folder the model it was made of? It is read again and asked the same things."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from clip_italian.batch import TokenGroup
from clip_italian.collection import Collection
from clip_italian.config import ConfigError
from clip_italian.data.tokens import encode
from clip_italian.hub.load import LoadedModel, RunEncoder

# Largest differences before an export is refused; a scale is at most 100 times a cosine.
EMBEDS_LIMIT, LOGITS_LIMIT = 1e-4, 1e-2
_BATCH = 16  # pictures or texts at a time

# Float pixels [n, 3, height, width] → embeddings; ids and mask [n, length] → embeddings.
EmbedImages = Callable[[np.ndarray], np.ndarray]
EmbedTexts = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Check:
    """How far one reading of an exported folder is from the model it was made of.

    Attributes:
      library: what read the folder, for people: "transformers 4.57.6, Flax".
      data: name of the set of pictures and captions.
      pictures: how many were compared.
      captions: likewise.
      image_embeds: largest absolute difference of embeddings, same pixels.
      text_embeds: largest absolute difference of embeddings, same tokens.
      logits: largest absolute difference of the scaled similarities, all pairs.
      same_top1: pictures whose best caption is the same.
      own_image_embeds: as `image_embeds`, when the folder's own image processor reads the
        pictures; None where that was not compared.
      own_same_top1: as `same_top1`, likewise.
    """

    library: str
    data: str
    pictures: int
    captions: int
    image_embeds: float
    text_embeds: float
    logits: float
    same_top1: int
    own_image_embeds: float | None = None
    own_same_top1: int | None = None


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the model itself says about some pictures and captions.

    Attributes:
      data: name of the set.
      pictures: RGB pictures.
      pixel_values: float32 [n, 3, height, width], as our own pipeline cuts them, normalised.
      tokens: of the captions, int32 [captions, length].
      image_embeds: float32 [n, dim].
      text_embeds: float32 [captions, dim].
      factor: the similarity scale, exp(logit_scale).
    """

    data: str
    pictures: Sequence[Image.Image]
    pixel_values: np.ndarray
    tokens: TokenGroup
    image_embeds: np.ndarray
    text_embeds: np.ndarray
    factor: float


def make_reference(loaded: LoadedModel, collection: Collection, pictures: int) -> Reference:
    """Asks the model about the first pictures of a set and the first caption of each.

    Equal captions are taken once: between them a best one would be left to rounding.

    Raises:
      ConfigError: the set has no captions, fewer than two pictures, or one that cannot be decoded.
    """
    count = min(pictures, len(collection))
    first = {int(i): n for n, i in reversed(list(enumerate(collection.caption_image)))}
    captions = [collection.captions[first[i]] for i in range(count) if i in first]
    texts = _distinct(loaded, captions)
    if count < 2 or len(texts) < 2:
        raise ConfigError(
            f"verify_set: {collection.name} has {count} pictures with {len(texts)} different "
            "captions; two at least are needed"
        )
    names = collection.image_keys[:count]
    encoder = RunEncoder(loaded, batch_size=_BATCH)
    with jax.default_matmul_precision("highest"):
        image_embeds = encoder.encode_images(collection.read, names)
        text_embeds = encoder.encode_texts(texts)
    model = loaded.model
    pixels = encoder.pixels(collection.read, names).astype(np.float32) / 255
    mean, std = (np.asarray(c, np.float32) for c in (model.image_mean, model.image_std))
    pixels = (pixels - mean[None, None, None]) / std[None, None, None]
    return Reference(
        collection.name,
        [Image.open(io.BytesIO(data)).convert("RGB") for data in collection.read(np.arange(count))],
        np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)),
        encode(loaded.tokenizer, texts, loaded.config.data.max_length),
        image_embeds,
        text_embeds,
        float(np.exp(loaded.params["logit_scale"])),
    )


def _distinct(loaded: LoadedModel, captions: Sequence[str]) -> list[str]:
    """The captions without those that the model cannot tell from an earlier one."""
    if not captions:
        return []
    tokens = encode(loaded.tokenizer, captions, loaded.config.data.max_length)
    first: dict[bytes, str] = {}
    for ids, text in zip(tokens.input_ids, captions, strict=True):
        first.setdefault(ids.tobytes(), text)
    return list(first.values())


def compare(
    reference: Reference,
    library: str,
    embed_images: EmbedImages,
    embed_texts: EmbedTexts,
    factor: float,
    processor: Any = None,
) -> Check:
    """Asks another reading of the model the same things.

    Args:
      reference: from `make_reference`.
      library: what reads the folder, for people.
      embed_images: normalised pixels → embeddings, rows of length 1.
      embed_texts: token ids and mask → embeddings, rows of length 1.
      factor: the similarity scale that this reading found, a plain factor.
      processor: the folder's image processor, to compare with pictures read by it; or None.
    """
    tokens = reference.tokens
    images = _batched(embed_images, reference.pixel_values)
    texts = _batched(embed_texts, tokens.input_ids, tokens.attention_mask)
    expected = reference.factor * reference.image_embeds @ reference.text_embeds.T
    logits = factor * images @ texts.T
    best = expected.argmax(1)
    own: dict[str, Any] = {}
    if processor is not None:
        pixels = processor(images=list(reference.pictures), return_tensors="np")["pixel_values"]
        read = _batched(embed_images, np.asarray(pixels, np.float32))
        own["own_image_embeds"] = _largest(read, reference.image_embeds)
        own["own_same_top1"] = int(((read @ texts.T).argmax(1) == best).sum())
    return Check(
        library=library,
        data=reference.data,
        pictures=len(images),
        captions=len(texts),
        image_embeds=_largest(images, reference.image_embeds),
        text_embeds=_largest(texts, reference.text_embeds),
        logits=_largest(logits, expected),
        same_top1=int((logits.argmax(1) == best).sum()),
        **own,
    )


def require(check: Check, folder: Path) -> None:
    """Raises `ConfigError` when a reading of the folder is not the model."""
    largest = max(check.image_embeds, check.text_embeds)
    # Not-a-number is no agreement either.
    near = largest <= EMBEDS_LIMIT and check.logits <= LOGITS_LIMIT
    if not near or check.same_top1 < check.pictures:
        raise ConfigError(
            f"{folder} is not the model it was made of: read by {check.library}, embeddings differ "
            f"by up to {largest:.2g} (allowed: {EMBEDS_LIMIT:g}), logits by {check.logits:.2g} "
            f"(allowed: {LOGITS_LIMIT:g}), and {check.same_top1} of "
            f"{check.pictures} pictures of {check.data} find the same caption"
        )


def _batched(embed: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """Rows a batch at a time, the last batch filled up so that one program serves all."""
    rows = len(arrays[0])
    fill = -rows % _BATCH
    padded = [np.concatenate([array, np.repeat(array[:1], fill, axis=0)]) for array in arrays]
    parts = [
        embed(*(array[start : start + _BATCH] for array in padded))
        for start in range(0, rows + fill, _BATCH)
    ]
    return np.concatenate(parts)[:rows]


def _largest(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())
