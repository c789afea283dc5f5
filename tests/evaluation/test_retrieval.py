"""The in-loop evaluator on embeddings given as parameters."""

import dataclasses

import jax
import numpy as np
import pytest

from clip_italian.batch import ImageBatch, TextBatch, TokenGroup
from clip_italian.config import ConfigError, EvalConfig
from clip_italian.evaluation import metrics
from clip_italian.evaluation.retrieval import (
    SetEvaluator,
    encode_set,
    evaluated_sets,
    metric_names,
)


@dataclasses.dataclass
class FakeSet:
    """Pixels and tokens hold the row number; batches of 2, padded."""

    name: str
    captions: list[str]
    caption_image: np.ndarray
    labels: np.ndarray | None = None
    class_ids: tuple[str, ...] = ()
    images: int = 3

    def image_batches(self):
        for numbers, mask in self._batches(self.images):
            yield ImageBatch(numbers[:, None, None, None].astype(np.uint8), mask)

    def text_batches(self):
        return self.batches_of(self.captions)

    def batches_of(self, texts):
        for numbers, mask in self._batches(len(texts)):
            ids = numbers[:, None].astype(np.int32)
            yield TextBatch(TokenGroup(ids, np.ones_like(ids)), mask)

    @staticmethod
    def _batches(count):
        for start in range(0, count, 2):
            numbers = np.arange(start, start + 2)
            yield np.where(numbers < count, numbers, 0), numbers < count


@jax.jit
def encode_image(params, pixel_values):
    return params["image"][pixel_values[:, 0, 0, 0]]


@jax.jit
def encode_text(params, tokens):
    return params["text"][tokens.input_ids[:, 0]]


# Three images, four captions; scores by hand in test_metrics.py.
PARAMS = {
    "image": np.eye(3, dtype=np.float32),
    "text": np.array([[3, 1, 2], [1, 2, 0], [2, 2, 5], [0, 0, 1]], np.float32),
}
CAPTIONS = FakeSet("sample", ["a", "b", "c", "d"], np.array([0, 0, 1, 2], np.int32))
LABELS = FakeSet("labels", ["cane", "gatto", "cane"], np.array([0, 1, 2], np.int32))


def test_encode_set_gives_every_row_once():
    image_embeds, text_embeds = encode_set(CAPTIONS, PARAMS, encode_image, encode_text)
    np.testing.assert_array_equal(image_embeds, PARAMS["image"])
    np.testing.assert_array_equal(text_embeds, PARAMS["text"])


def test_one_set_has_plain_names():
    values = dict(SetEvaluator([CAPTIONS], encode_image, encode_text)(PARAMS))
    assert list(values) == metric_names([CAPTIONS]) == list(metrics.RETRIEVAL_METRICS)
    assert values["text_to_image/R@1"] == 0.5
    assert values["text_to_image/median_rank"] == 1.5
    assert values["image_to_text/R@1"] == pytest.approx(1 / 3)
    assert values["image_to_text/median_rank"] == 2.0


def test_several_sets_are_prefixed():
    evaluate = SetEvaluator([CAPTIONS, LABELS], encode_image, encode_text)
    names = [name for name, _ in evaluate(PARAMS)]
    assert names == metric_names([CAPTIONS, LABELS])
    assert names[0] == "sample/text_to_image/R@1"
    assert names[-1] == "labels/image_to_text/median_rank"


def test_the_evaluator_takes_the_parameters_of_the_call():
    evaluate = SetEvaluator([CAPTIONS], encode_image, encode_text)
    before = dict(evaluate(PARAMS))
    text = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    after = dict(evaluate(PARAMS | {"text": text}))
    assert before["text_to_image/R@1"] == 0.5
    assert after["text_to_image/R@1"] == 1.0
    ((one, image_embeds, text_embeds),) = evaluate.encoded  # of the newest evaluation alone
    assert one is CAPTIONS
    np.testing.assert_array_equal(image_embeds, PARAMS["image"])
    np.testing.assert_array_equal(text_embeds, text)


def test_zero_shot_takes_one_text_for_each_distinct_caption():
    # Classes: cane = [0, 1, 0] (its first caption), gatto = [0, 0, 1]. Image 0 is a dog with
    # scores 0, 0 (a tie: rank 2); image 1 a cat with 1, 0 (rank 2); image 2 a dog with 0, 1
    # (rank 2). Were the second "cane" [9, 9, 9] used, images 0 and 2 would be right.
    text = np.array([[0, 1, 0], [0, 0, 1], [9, 9, 9]], np.float32)
    evaluate = SetEvaluator([LABELS], encode_image, encode_text, classify=True)
    values = dict(evaluate(PARAMS | {"text": text}))
    assert list(values) == metric_names([LABELS], classify=True)
    assert values["zero_shot/acc@1"] == 0.0
    assert "zero_shot/acc@5" not in values  # among two classes it says nothing
    right = dict(evaluate(PARAMS | {"text": text[[1, 0, 2]] + [[1, 0, 0], [0, 0, 0], [0, 0, 0]]}))
    assert right["zero_shot/acc@1"] == 1.0  # cane [1, 0, 1], gatto [0, 1, 0]


def test_zero_shot_refuses_captions_before_any_step():
    with pytest.raises(ConfigError, match="zero_shot"):
        SetEvaluator([LABELS, CAPTIONS], encode_image, encode_text, classify=True)


# Two classes of the pack below with two prompts each, so that prompt 2 belongs to class 1.
PHOTOS = FakeSet("photos", [], np.zeros(0, np.int32), np.array([0, 1, 1]), ("n1", "n2"))


@pytest.fixture
def pack(tmp_path):
    (tmp_path / "classes.tsv").write_text("class_id\tbare\nn1\tcane\nn2\tgatto\nn3\ttopo\n")
    (tmp_path / "templates.txt").write_text("{bare}\nun {bare}\n")
    return str(tmp_path)


def test_a_labelled_set_is_classified_with_the_prompts_of_a_pack(pack):
    config = EvalConfig(class_names=pack, best_metric="zero_shot/acc@1")
    (photos,) = evaluated_sets([PHOTOS], config)
    assert photos.captions == ["cane", "un cane", "gatto", "un gatto"]
    # Classes: mean of [1, 0, 0] and [0, 1, 0]; mean of [0, 0, 1] twice. Images 0 and 2 are right.
    text = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]], np.float32)
    values = dict(SetEvaluator([photos], encode_image, encode_text)(PARAMS | {"text": text}))
    assert values == {"zero_shot/acc@1": pytest.approx(2 / 3)}
    assert metric_names([photos]) == ["zero_shot/acc@1"]


def test_a_set_with_captions_and_labels_gives_both(pack):
    both = dataclasses.replace(PHOTOS, captions=["a", "b", "c"], caption_image=np.arange(3))
    config = EvalConfig(class_names=pack, best_metric="photos/zero_shot/acc@1")
    names = metric_names(evaluated_sets([both], config))
    assert "photos/text_to_image/R@1" in names and names[-1] == "photos/zero_shot/acc@1"


def test_the_best_metric_must_be_one_of_which_more_is_better(pack):
    for name in ("zero_shot/acc@1", "text_to_image/median_rank"):
        with pytest.raises(ConfigError, match=f"best_metric = '{name}' is not allowed; give one"):
            evaluated_sets([CAPTIONS], EvalConfig(best_metric=name))
    evaluated_sets([CAPTIONS], EvalConfig())


def test_sets_of_one_name_and_unknown_classes_are_refused(pack):
    with pytest.raises(ConfigError, match="two sets have one name"):
        evaluated_sets([CAPTIONS, CAPTIONS], EvalConfig())
    other = dataclasses.replace(PHOTOS, class_ids=("n1", "n9"))
    with pytest.raises(ConfigError, match="n9"):
        evaluated_sets([other], EvalConfig(class_names=pack))


def test_a_diverged_model_is_an_error():
    broken = PARAMS | {"image": np.full((3, 3), np.nan, np.float32)}
    with pytest.raises(ValueError, match="not finite"):
        list(SetEvaluator([CAPTIONS], encode_image, encode_text)(broken))
