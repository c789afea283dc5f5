"""Paired tests between reports, means over seeds."""

import dataclasses

import numpy as np
import pytest

from clip_italian.config import ConfigError
from clip_italian.evaluation.comparison import over_seeds, paired_tests
from clip_italian.evaluation.report import Result
from clip_italian.evaluation.tasks import Outcome


def outcome(model, ranks, *, set="photos", task="zero_shot", data="d1", metrics=None, items=None):
    ranks = np.array(ranks, np.int64)
    if metrics is None:
        metrics = {"zero_shot/acc@1": float(np.mean(ranks == 1))}
    result = Result(
        model=model, model_fingerprint=model, set=set, protocol="folder", data_fingerprint=data,
        language="it", task=task, variant="it", images=len(ranks), captions=3, metrics=metrics,
        intervals={}, details={},
    )  # fmt: skip
    return Outcome(result, {"ranks": ranks} if items is None else items)


def retrieval(model, t2i, i2t, cluster):
    metrics = {"text_to_image/R@1": float(np.mean(np.array(t2i) == 1)), "text_to_image/MRR@10": 0.5}
    items = {
        "text_to_image": np.array(t2i),
        "text_to_image/cluster": np.array(cluster),
        "image_to_text": np.array(i2t),
        "image_to_text/cluster": np.arange(len(i2t)),
    }
    return outcome(model, i2t, task="retrieval", metrics=metrics, items=items)


def test_the_difference_is_what_b_gains():
    a = outcome("a", [1] * 10 + [2] * 30)
    b = outcome("b", [1] * 30 + [2] * 10)
    (found,) = paired_tests([[a]], [[b]], resamples=500)
    assert (found["a"], found["b"], found["metric"]) == ("a", "b", "zero_shot/acc@1")
    assert found["difference"] == pytest.approx(0.5)
    assert found["low"] < 0.5 < found["high"] and found["low"] > 0.3
    assert found["p_value"] < 0.01


def test_each_direction_of_retrieval_is_tested_over_its_own_queries():
    a = retrieval("a", [1, 1, 2, 20], [1, 2], [0, 0, 1, 1])
    b = retrieval("b", [1, 1, 1, 2], [1, 2], [0, 0, 1, 1])
    found = {one["metric"]: one for one in paired_tests([[a]], [[b]], resamples=200)}
    assert set(found) == {"text_to_image/R@1", "text_to_image/MRR@10"}  # what the result reports
    assert found["text_to_image/R@1"]["difference"] == pytest.approx(1 / 4)
    assert found["text_to_image/MRR@10"]["difference"] == pytest.approx((0.5 + 0.5) / 4)


def test_several_seeds_count_with_their_mean():
    seeds = [[outcome("a", [1, 2, 2, 2])], [outcome("a", [1, 1, 2, 2])]]
    b = outcome("b", [1, 1, 1, 1])
    (found,) = paired_tests(seeds, [[b]], resamples=200)
    assert found["difference"] == pytest.approx(1 - (0.25 + 0.5) / 2)
    assert (found["seeds_a"], found["seeds_b"]) == (2, 1)


def test_mean_and_deviation_over_seeds():
    seeds = [[outcome("a", [1, 2, 2, 2])], [outcome("a", [1, 1, 2, 2])], [outcome("a", [1] * 4)]]
    (found,) = over_seeds(seeds)
    assert found["model"] == "a and 2 more seeds"
    assert found["seeds"] == 3 and found["mean"] == pytest.approx(1.75 / 3)
    assert found["sd"] == pytest.approx(np.std([0.25, 0.5, 1.0], ddof=1))
    assert over_seeds(seeds[:1]) == []


def test_seeds_that_saw_other_things_are_refused():
    a, other = outcome("a", [1, 2]), outcome("a", [1, 2], data="d2")
    with pytest.raises(ConfigError, match="the data of photos zero_shot it are not the same"):
        over_seeds([[a], [other]])
    with pytest.raises(ConfigError, match="the data of photos zero_shot it are not the same"):
        paired_tests([[other], [a]], [[outcome("b", [1, 2])]], resamples=100)
    with pytest.raises(ConfigError, match="photos zero_shot it is in 1 of the 2 reports"):
        over_seeds([[a], []])
    prompted = dataclasses.replace(
        a, result=dataclasses.replace(a.result, details={"prompts": "other words"})
    )
    with pytest.raises(ConfigError, match="the class names and prompts of photos"):
        paired_tests([[a]], [[prompted]], resamples=100)


def test_missing_ranks_are_an_error_and_no_silence():
    a, b = outcome("a", [1, 2]), outcome("b", [1, 2], items={})
    with pytest.raises(ConfigError, match="lacks the ranks of photos zero_shot it"):
        paired_tests([[a]], [[b]], resamples=100)


def test_other_data_and_other_sets_are_refused():
    a, b = outcome("a", [1, 2]), outcome("b", [1, 2], data="d2")
    with pytest.raises(ConfigError, match="the data of photos zero_shot it are not the same"):
        paired_tests([[a]], [[b]], resamples=100)
    with pytest.raises(ConfigError, match="share no set; found .*photos.* and .*others"):
        paired_tests([[a]], [[outcome("b", [1, 2], set="others")]], resamples=100)
