"""Embeddings of one model on one set → a result of the report and what a paired test needs."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clip_italian.collection import Collection
from clip_italian.evaluation import contrast, metrics, probe, statistics, zero_shot
from clip_italian.evaluation.languages.pack import BARE, LanguagePack
from clip_italian.evaluation.report import Result

# Points of the recall curve: every k up to 10, then about ten a decade.
CURVE_KS = (*range(1, 11), 12, 15, 20, 25, 30, 40, 50, 60, 80, 100)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One result, with the numbers of each item (query, image) behind it."""

    result: Result
    items: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Subject:
    """Which model, on which set, with how many bootstrap samples."""

    model: str
    model_fingerprint: str
    collection: Collection
    resamples: int

    def result(self, task: str, texts: int, values: Mapping[str, float], **fields: Any) -> Result:
        """A result of this model on this set; `values` are its metrics, `fields` the rest."""
        one = self.collection
        return Result(
            model=self.model,
            model_fingerprint=self.model_fingerprint,
            set=one.name,
            protocol=one.protocol,
            data_fingerprint=one.fingerprint,
            language=one.language,
            task=task,
            images=len(one),
            captions=texts,
            metrics=dict(values),
            **fields,
        )


def retrieval(subject: Subject, image_embeds: np.ndarray, text_embeds: np.ndarray) -> Outcome:
    """Both directions: R@k, MRR@k, median rank, intervals over images, recall curves."""
    one = subject.collection
    clusters = {"text_to_image": one.caption_image, "image_to_text": np.arange(len(one))}
    values, intervals, items = {}, {}, {}
    curves: dict[str, list[list[float]]] = {}
    found = metrics.retrieval_ranks(image_embeds, text_embeds, one.caption_image)
    for direction, ranks in found.items():
        cluster = np.asarray(clusters[direction], np.int32)
        values |= {f"{direction}/{k}": v for k, v in metrics.summary(ranks).items()}
        bounds = {}
        if len(one) > 1:  # one image alone has no spread
            bounds = statistics.intervals(ranks, cluster, resamples=subject.resamples)
        intervals |= {f"{direction}/{name}": pair for name, pair in bounds.items()}
        curves[direction] = [[k, metrics.recall_at_k(ranks, k)] for k in CURVE_KS]
        items |= {direction: ranks, f"{direction}/cluster": cluster}
    result = subject.result(
        "retrieval", len(one.captions), values, intervals=intervals,
        details={"recall_curves": curves},
    )  # fmt: skip
    return Outcome(result, items)


def classification(
    subject: Subject,
    image_embeds: np.ndarray,
    class_embeds: np.ndarray,
    labels: np.ndarray,
    pack: LanguagePack,
    variant: str,
) -> Outcome:
    """Zero-shot: each image among the classes of `pack`.

    Args:
      subject: which model on which set.
      image_embeds: float [images, dim].
      class_embeds: float [classes, dim], from `zero_shot.pack_embeds`.
      labels: int [images], index into the pack's classes.
      pack: names and templates.
      variant: what to call these names and prompts in the report.
    """
    found = zero_shot.classify(image_embeds, class_embeds, labels)
    names = [one.forms[BARE] for one in pack.classes]
    per_class = zero_shot.per_class_accuracy(found.ranks, labels, len(names))
    counts = np.bincount(labels, minlength=len(names))
    details = {
        "prompts": hashlib.sha256(json.dumps(zero_shot.prompt_list(pack)[0]).encode()).hexdigest(),
        "per_class": [
            [one.class_id, name, None if np.isnan(share) else float(share), int(count)]
            for one, name, share, count in zip(pack.classes, names, per_class, counts, strict=True)
        ],
        "confusions": [
            [names[true], names[predicted], int(count)]
            for true, predicted, count in zero_shot.confusion_pairs(labels, found.predicted)
        ],
    }
    texts = len(pack.classes) * len(pack.templates)
    return _accuracy(subject, "zero_shot", texts, found.ranks, len(names), variant, details)


def probes(
    subject: Subject,
    train_embeds: np.ndarray,
    image_embeds: np.ndarray,
    train: Collection,
) -> list[Outcome]:
    """Linear probe and k-NN on frozen features, tuned on held-out training images only.

    Args:
      subject: which model on which set.
      train_embeds: float [training images, dim].
      image_embeds: float [images, dim].
      train: the training images, with labels.
    """
    labels = subject.collection.labels
    assert labels is not None and train.labels is not None
    classes = len(subject.collection.class_ids)
    outcomes = []
    for task, method in (("linear_probe", probe.linear_probe), ("knn", probe.knn)):
        found = method(train_embeds, train.labels, image_embeds)
        ranks = found.ranks(labels)
        details = {
            "trained_on": train.name,
            "train_fingerprint": train.fingerprint,
            "train_images": len(train),
            **found.chosen,
        }
        outcomes.append(_accuracy(subject, task, 0, ranks, classes, "", details))
    return outcomes


def contrast_pairs(
    subject: Subject,
    items: Sequence[contrast.Item],
    image_embeds: np.ndarray,
    text_embeds: np.ndarray,
) -> Outcome:
    """The contrast pairs: accuracy of each probe. Probes, not truth: no intervals are claimed."""
    scores = contrast.score(items, image_embeds, text_embeds)
    details = {
        probe: {"items": len(one.item_accuracy), "choices": one.choices, "chance": contrast.CHANCE}
        for probe, one in scores.items()
    }
    result = subject.result("contrast", len(text_embeds), contrast.metrics(scores), details=details)
    return Outcome(result, {})


def _accuracy(
    subject: Subject,
    task: str,
    texts: int,
    ranks: np.ndarray,
    classes: int,
    variant: str,
    details: Mapping[str, Any],
) -> Outcome:
    ks = zero_shot.ks_for(classes)
    values = {f"{task}/{name}": value for name, value in zero_shot.accuracy(ranks, ks).items()}
    bounds = {}
    if len(ranks) > 1:
        bounds = statistics.accuracy_intervals(ranks, ks, resamples=subject.resamples)
    intervals = {f"{task}/{name}": pair for name, pair in bounds.items()}
    result = subject.result(
        task, texts, values, intervals=intervals, variant=variant, details=dict(details)
    )
    return Outcome(result, {"ranks": ranks})
