"""The evaluator that runs inside training: encode an evaluation set, score both directions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from clip_italian.batch import Array, ImageBatch, TextBatch, TokenGroup
from clip_italian.config import ConfigError
from clip_italian.evaluation import encode, metrics, zero_shot

Params = Any  # pytree of arrays
EncodeImage = Callable[[Params, Array], Array]
EncodeText = Callable[[Params, TokenGroup], Array]
Evaluator = Callable[[Params], Iterable[tuple[str, float]]]


class EvaluationSet(Protocol):
    """What an evaluator needs of a set; the data room's object fits."""

    @property
    def name(self) -> str:
        """Name of the source."""
        ...

    @property
    def captions(self) -> Sequence[str]:
        """Every caption, in the order of `text_batches`."""
        ...

    @property
    def caption_image(self) -> np.ndarray:
        """Int [captions], index of each caption's image in the order of `image_batches`."""
        ...

    def image_batches(self) -> Iterable[ImageBatch]:
        """Every image once, padded and masked; called anew for each evaluation."""
        ...

    def text_batches(self) -> Iterable[TextBatch]:
        """Every caption once, padded and masked; called anew for each evaluation."""
        ...


def encode_set(
    evaluation_set: EvaluationSet,
    params: Params,
    encode_image: EncodeImage,
    encode_text: EncodeText,
) -> tuple[np.ndarray, np.ndarray]:
    """All images and all captions: float32 [images, dim] and [captions, dim].

    Args:
      evaluation_set: what to encode.
      params: handed to the callables as they are.
      encode_image: compiled; (params, uint8 [rows, height, width, 3]) → float [rows, dim].
      encode_text: compiled; (params, TokenGroup) → float [rows, dim].
    """
    return (
        encode.encode_images(
            lambda pixels: encode_image(params, pixels), evaluation_set.image_batches()
        ),
        encode.encode_texts(
            lambda tokens: encode_text(params, tokens), evaluation_set.text_batches()
        ),
    )


def set_metrics(
    evaluation_set: EvaluationSet,
    image_embeds: np.ndarray,
    text_embeds: np.ndarray,
    *,
    classify: bool = False,
) -> dict[str, float]:
    """Metrics of one encoded set: `metrics.RETRIEVAL_METRICS`, and zero-shot with `classify`.

    Zero-shot takes one text per distinct caption, as `zero_shot.classes_from_captions` says.
    """
    captions, caption_image = evaluation_set.captions, evaluation_set.caption_image
    values = metrics.retrieval_metrics(image_embeds, text_embeds, caption_image)
    if classify:
        classes, labels = zero_shot.classes_from_captions(captions, caption_image)
        first = [captions.index(name) for name in classes]
        accuracy = zero_shot.top_k_accuracy(image_embeds, text_embeds[first], labels)
        values |= {f"zero_shot/acc@{k}": value for k, value in accuracy.items()}
    return values


def make_evaluator(
    sets: Sequence[EvaluationSet],
    encode_image: EncodeImage,
    encode_text: EncodeText,
    *,
    classify: bool = False,
) -> Evaluator:
    """An evaluator params → (name, value) over sets; `metric_names` lists the names.

    Raises:
      ConfigError: at once, when `classify` is set and a set's captions are not labels.
    """
    if classify:
        for one in sets:
            zero_shot.classes_from_captions(one.captions, one.caption_image)

    def evaluate(params: Params) -> Iterator[tuple[str, float]]:
        for one in sets:
            embeds = encode_set(one, params, encode_image, encode_text)
            prefix = _prefix(one.name, len(sets))
            for name, value in set_metrics(one, *embeds, classify=classify).items():
                yield prefix + name, value

    return evaluate


def metric_names(set_names: Sequence[str], *, classify: bool = False) -> list[str]:
    """Names that `make_evaluator` yields: prefixed with the set's name when there are several."""
    names = list(metrics.RETRIEVAL_METRICS)
    if classify:
        names += [f"zero_shot/acc@{k}" for k in zero_shot.ACCURACY_KS]
    return [_prefix(one, len(set_names)) + name for one in set_names for name in names]


def check_best_metric(name: str, sets: Sequence[EvaluationSet], *, classify: bool = False) -> None:
    """Raises `ConfigError` unless `name` is a metric of these sets of which more is better."""
    names = metric_names([one.name for one in sets], classify=classify)
    allowed = [known for known in names if not known.endswith("median_rank")]
    if name not in allowed:
        raise ConfigError(f"best_metric = {name!r} is not allowed; give one of {allowed}")


def _prefix(name: str, sets: int) -> str:
    return f"{name}/" if sets > 1 else ""
