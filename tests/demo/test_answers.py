"""What the model says, against the arithmetic done by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from clip_italian.config import ConfigError
from clip_italian.demo.answers import (
    MOST_RESULTS,
    NEAR_DUPLICATE,
    NEGATIVE_WEIGHT,
    Found,
    fold_duplicates,
)
from clip_italian.demo.pictures import decode
from clip_italian.demo.words import ITALIAN
from tests.demo.conftest import SCENES

TEXT, OTHER = "una stella blu", "un cerchio rosso"


def order(scores):
    return np.argsort(-scores, kind="stable")


@pytest.fixture
def picture(answers):
    return decode(answers.index.thumbnail(3), ITALIAN)


def test_a_text_finds_the_most_similar_pictures(answers):
    found = answers.by_text(TEXT, "", 7, fold=False)
    scores = answers.index.image_embeds @ answers.encoder.encode_texts([TEXT])[0]
    np.testing.assert_array_equal(found.rows, order(scores)[:7])
    np.testing.assert_allclose(found.scores, scores[found.rows], atol=1e-6)
    assert [*found.folded] == [()] * 7


def test_a_negative_text_is_taken_off(answers):
    found = answers.by_text(TEXT, OTHER, 5, fold=False)
    text, other = answers.encoder.encode_texts([TEXT]), answers.encoder.encode_texts([OTHER])
    scores = answers.index.image_embeds @ (text - NEGATIVE_WEIGHT * other)[0]
    np.testing.assert_array_equal(found.rows, order(scores)[:5])
    np.testing.assert_allclose(found.scores, scores[found.rows], atol=1e-6)


def test_a_picture_finds_itself_first(answers):
    found = answers.by_row(11, 3, fold=False)
    assert found.rows[0] == 11
    assert found.scores[0] == pytest.approx(1, abs=1e-5)
    for row in (-1, SCENES):
        with pytest.raises(IndexError):
            answers.by_row(row, 3, fold=False)


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (-5, 1), (10**9, SCENES), (5, 5)])
def test_as_many_as_there_may_be(answers, asked, given):
    assert MOST_RESULTS >= SCENES
    assert len(answers.by_text(TEXT, "", asked, fold=False).rows) == given


def test_near_duplicates_are_folded_into_the_best():
    angles = np.array([0, 90, 1, 91, 45, 2])
    rows = np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], 1).astype("float32")
    assert fold_duplicates(rows, np.cos(np.radians(3))) == [[0, 2, 5], [1, 3], [4]]
    assert fold_duplicates(rows, 2.0) == [[place] for place in range(6)]
    assert fold_duplicates(rows[:0], 0.5) == []


def test_folded_pictures_keep_their_scores_and_places(answers):
    """Tiny random towers find most pictures alike, so some must be folded."""
    plain = answers.by_text(TEXT, "", SCENES, fold=False)
    found = answers.by_text(TEXT, "", 4, fold=True)
    assert isinstance(found, Found) and len(found.rows) <= 4
    assert any(found.folded)
    place = {row: number for number, row in enumerate(plain.rows.tolist())}
    embeds = answers.index.image_embeds
    for row, score, folded in zip(found.rows.tolist(), found.scores, found.folded, strict=True):
        assert score == plain.scores[place[row]]
        for other in folded:
            assert place[other] > place[row]
            assert embeds[row] @ embeds[other] >= NEAR_DUPLICATE - 1e-6


def test_the_picture_of_the_index_is_the_one_the_model_saw(answers, picture):
    # Thumbnails are JPEG again, hence not quite the same.
    cosine = answers.image_embeds(picture) @ answers.index.image_embeds[3]
    assert cosine > 0.99


def test_probabilities_are_a_softmax_at_the_models_scale(answers, picture):
    texts = [TEXT, OTHER, "un albero verde"]
    cosines = answers.encoder.encode_texts(texts) @ answers.image_embeds(picture)
    raised = np.exp(np.exp(float(answers.model.params["logit_scale"])) * cosines.astype(float))
    found = answers.probabilities(picture, texts)
    np.testing.assert_allclose(found, raised / raised.sum(), rtol=1e-4)
    assert found.sum() == pytest.approx(1)


def test_the_sigmoid_loss_judges_each_text_by_itself(other, picture):
    assert other.encoder.logit_bias is not None
    texts = [TEXT, OTHER]
    cosines = other.encoder.encode_texts(texts) @ other.image_embeds(picture)
    scale, bias = (float(other.model.params[k]) for k in ("logit_scale", "logit_bias"))
    expected = 1 / (1 + np.exp(-(np.exp(scale) * cosines + bias)))
    np.testing.assert_allclose(other.probabilities(picture, texts), expected, rtol=1e-4)
    alone = other.probabilities(picture, texts[:1])
    np.testing.assert_allclose(alone, expected[:1], rtol=1e-4)


def test_pack_probabilities_have_each_name_once(answers, picture, monkeypatch):
    calls = []
    encode = answers.encoder.encode_texts

    def counted(texts):
        calls.append(len(texts))
        rows = encode(texts[:8])
        return np.tile(rows, (-(-len(texts) // 8), 1))[: len(texts)]

    monkeypatch.setattr(answers.encoder, "encode_texts", counted)
    names, values = answers.pack_probabilities(picture, "una foto di {indefinite}")
    again, same = answers.pack_probabilities(picture, "una foto di {indefinite}")
    assert len(calls) == 1, "the classes are encoded once"
    assert names == again and len(set(names)) == len(names) > 950
    np.testing.assert_array_equal(values, same)
    assert values.sum() == pytest.approx(1)
    with pytest.raises(ConfigError, match="template"):
        answers.pack_probabilities(picture, "una foto")


def test_pixels_are_the_middle_square(answers):
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste("blue", (32, 0, 64, 32))
    data = io.BytesIO()
    wide.save(data, "PNG")
    pixels = answers.pixels(decode(data.getvalue(), ITALIAN))
    assert pixels.shape == (32, 32, 3)
    assert (pixels == (0, 0, 255)).all()
