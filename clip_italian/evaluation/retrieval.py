"""The evaluators that run inside training: encode a set, score retrieval or classification."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from clip_italian.batch import Array, ImageBatch, TextBatch, TokenGroup
from clip_italian.config import ConfigError, EvalConfig
from clip_italian.evaluation import encode, metrics, zero_shot
from clip_italian.evaluation.languages import naming
from clip_italian.evaluation.languages.pack import LanguagePack

Params = Any  # pytree of arrays
EncodeImage = Callable[[Params, Array], Array]
EncodeText = Callable[[Params, TokenGroup], Array]


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


class NamedSet(EvaluationSet, Protocol):
    """An evaluation set that may have class labels beside captions, or in their place."""

    @property
    def labels(self) -> np.ndarray | None:
        """Int [images], index into `class_ids`, or None."""
        ...

    @property
    def class_ids(self) -> Sequence[str]:
        """What the source calls the classes."""
        ...

    def batches_of(self, texts: Sequence[str]) -> Iterable[TextBatch]:
        """Any texts, padded and masked as captions are."""
        ...


S = TypeVar("S", bound=NamedSet)


@dataclasses.dataclass(frozen=True)
class LabelledSet:
    """Images with class labels, whose texts are the prompts of a language pack.

    Attributes:
      inner: the set.
      labels: int [images], index into the pack's classes.
      pack: names and templates of the set's classes.
      variant: what reports call these names and templates.
    """

    inner: NamedSet
    labels: np.ndarray
    pack: LanguagePack
    variant: str

    @property
    def name(self) -> str:
        """Name of the set."""
        return self.inner.name

    @property
    def captions(self) -> Sequence[str]:
        """Every distinct prompt, class after class."""
        return list(dict.fromkeys(zero_shot.prompt_list(self.pack)[0]))

    @property
    def caption_image(self) -> np.ndarray:
        """Prompts belong to no image: int32 [0]."""
        return np.zeros(0, np.int32)

    def image_batches(self) -> Iterable[ImageBatch]:
        """Every image once, padded and masked."""
        return self.inner.image_batches()

    def text_batches(self) -> Iterable[TextBatch]:
        """Every prompt once, padded and masked."""
        return self.inner.batches_of(self.captions)


def evaluated_sets(sets: Sequence[S], config: EvalConfig) -> list[S | LabelledSet]:
    """What is evaluated of named sets: retrieval where there are captions, labels with prompts.

    Args:
      sets: of different names.
      config: its `class_names` names the classes (see `naming.open_pack`), its `best_metric` must
        be a metric of these sets.

    Raises:
      ConfigError: two sets have one name, the pack lacks a class, `best_metric` is none of the
        metrics or one of which less is better.
    """
    names = [one.name for one in sets]
    if len(set(names)) < len(names):
        raise ConfigError(f"eval_sets: two sets have one name: {sorted(names)}")
    found: list[S | LabelledSet] = []
    for one in sets:
        if len(one.captions):
            found.append(one)
        if one.labels is not None:
            pack = naming.select(naming.open_pack(config.class_names), one.class_ids)
            variant = naming.describe(config.class_names, pack)
            found.append(LabelledSet(one, one.labels, pack, variant))
    check_best_metric(config.best_metric, found, classify=config.zero_shot)
    return found


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
    """Metrics of one encoded set: retrieval, or zero-shot of a `LabelledSet`.

    With `classify`, captions of a set without labels are class names: zero-shot as well, with one
    text per distinct caption, as `zero_shot.classes_from_captions` says.
    """
    if isinstance(evaluation_set, LabelledSet):
        embeds = zero_shot.pack_embeds(evaluation_set.pack, lambda prompts: text_embeds)
        return _accuracies(image_embeds, embeds, evaluation_set.labels)
    captions, caption_image = evaluation_set.captions, evaluation_set.caption_image
    values = metrics.retrieval_metrics(image_embeds, text_embeds, caption_image)
    if classify and not _has_labels(evaluation_set):
        names, labels = zero_shot.classes_from_captions(captions, caption_image)
        first = [captions.index(name) for name in names]
        values |= _accuracies(image_embeds, text_embeds[first], labels)
    return values


def _accuracies(
    image_embeds: np.ndarray, class_embeds: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    ranks = metrics.ranks(image_embeds, class_embeds, labels, np.arange(len(class_embeds)))
    values = zero_shot.accuracy(ranks, zero_shot.ks_for(len(class_embeds)))
    return {f"zero_shot/{name}": value for name, value in values.items()}


@dataclasses.dataclass
class SetEvaluator:
    """An evaluator params → (name, value) over sets; `metric_names` lists the names.

    Attributes:
      sets: what is evaluated.
      encode_image: as in `encode_set`.
      encode_text: likewise.
      classify: as in `set_metrics`.
      encoded: (set, image embeddings, text embeddings) of the newest evaluation.

    Raises:
      ConfigError: at once, when `classify` is set and a set's captions are not labels.
    """

    sets: Sequence[EvaluationSet]
    encode_image: EncodeImage
    encode_text: EncodeText
    _: dataclasses.KW_ONLY
    classify: bool = False
    encoded: list[tuple[Any, np.ndarray, np.ndarray]] = dataclasses.field(
        default_factory=list, init=False
    )

    def __post_init__(self) -> None:
        metric_names(self.sets, classify=self.classify)

    def __call__(self, params: Params) -> Iterator[tuple[str, float]]:
        """Encodes and scores one set after another."""
        self.encoded.clear()
        for one in self.sets:
            embeds = encode_set(one, params, self.encode_image, self.encode_text)
            self.encoded.append((one, *embeds))
            prefix = _prefix(one.name, self.sets)
            for name, value in set_metrics(one, *embeds, classify=self.classify).items():
                yield prefix + name, value


def metric_names(sets: Sequence[EvaluationSet], *, classify: bool = False) -> list[str]:
    """Names that a `SetEvaluator` yields: prefixed with the set's name when there are several.

    Raises:
      ConfigError: `classify` is set and a set's captions are not labels.
    """
    names = []
    for one in sets:
        own = [] if isinstance(one, LabelledSet) else list(metrics.RETRIEVAL_METRICS)
        classes = 0
        if isinstance(one, LabelledSet):
            classes = len(one.pack.classes)
        elif classify and not _has_labels(one):
            classes = len(zero_shot.classes_from_captions(one.captions, one.caption_image)[0])
        own += [f"zero_shot/acc@{k}" for k in zero_shot.ks_for(classes)] if classes else []
        names += [_prefix(one.name, sets) + name for name in own]
    return names


def _has_labels(one: EvaluationSet) -> bool:
    """Then a `LabelledSet` of the same name is classified, and captions are none."""
    return getattr(one, "labels", None) is not None


def check_best_metric(name: str, sets: Sequence[EvaluationSet], *, classify: bool = False) -> None:
    """Raises `ConfigError` unless `name` is a metric of these sets of which more is better."""
    names = metric_names(sets, classify=classify)
    allowed = [known for known in names if not known.endswith("median_rank")]
    if name not in allowed:
        raise ConfigError(f"best_metric = {name!r} is not allowed; give one of {allowed}")


def _prefix(name: str, sets: Sequence[EvaluationSet]) -> str:
    return f"{name}/" if len(sets) > 1 else ""
