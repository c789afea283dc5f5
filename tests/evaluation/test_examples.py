"""Best and worst queries: which, in which order, and what each model found."""

import numpy as np
import pytest

from clip_italian.evaluation import examples, metrics

CAPTION_IMAGE = np.array([0, 0, 1, 2, 3])
CAPTIONS = ["zero", "zero again", "one", "two", "three"]


def embedded(model, texts):
    images = np.eye(4, dtype=np.float32)
    texts = np.array(texts, np.float32)
    ranks = metrics.ranks(texts, images, CAPTION_IMAGE, np.arange(4))
    return examples.Embedded(model, images, texts, ranks)


def first():
    return embedded(
        "first",
        [
            [0.9, 0.2, 0.0, 0.0],  # leads by 0.7
            [0.8, 0.0, 0.0, 0.0],  # leads by 0.8, the same picture
            [0.4, 0.9, 0.3, 0.0],  # leads by 0.5
            [0.5, 0.4, 0.1, 0.3],  # rank 4
            [0.0, 0.7, 0.1, 0.6],  # rank 2
        ],
    )


def second():
    return embedded("second", np.roll(np.eye(4, dtype=np.float32)[CAPTION_IMAGE], 1, axis=1))


def test_best_lead_by_most_and_worst_stand_last():
    chosen = examples.best_and_worst([first()], CAPTION_IMAGE, CAPTIONS)
    assert [row[0].query for row in chosen.best] == ["zero again", "one"]
    assert [row[0].query for row in chosen.worst] == ["two", "three"]
    assert [row[0].rank for row in chosen.worst] == [4, 2]
    far = chosen.worst[0][0]
    assert (far.found, far.right) == ((0, 1, 3, 2), 2)
    np.testing.assert_allclose(far.scores, [0.5, 0.4, 0.3, 0.1], rtol=1e-6)
    np.testing.assert_allclose(far.right_score, 0.1, rtol=1e-6)
    assert chosen.rule == (
        "Chosen by the scores of first. Best: of the 3 captions whose picture it puts first, the 2 "
        "whose picture leads the next one by most. Worst: of the 2 others, the 2 whose picture has "
        "the highest rank, among 4 pictures. No picture is asked for twice."
    )


def test_other_models_show_the_same_queries():
    chosen = examples.best_and_worst([first(), second()], CAPTION_IMAGE, CAPTIONS, queries=1)
    assert chosen.models == ("first", "second")
    assert [[one.query for one in row] for row in (*chosen.best, *chosen.worst)] == [
        ["zero again", "zero again"],
        ["two", "two"],
    ]
    assert [one.rank for one in chosen.best[0]] == [1, 4]
    assert chosen.best[0][1].found == (1, 2, 3, 0)  # the tied right picture goes last


def test_no_picture_is_asked_for_twice_and_the_order_decides_between_equals():
    images = np.eye(3, dtype=np.float32)
    caption_image = np.array([0, 1, 1, 2, 2, 2])
    texts = images[[1, 1, 1, 0, 0, 0]]  # 0 and all of 2 are wrong
    ranks = np.array([3, 1, 1, 3, 3, 3])
    model = examples.Embedded("m", images, texts, ranks)
    chosen = examples.best_and_worst([model], caption_image, list("abcdef"))
    assert [row[0].query for row in chosen.best] == ["b"]
    assert [row[0].query for row in chosen.worst] == ["a", "d"]


def test_leads_do_not_depend_on_the_blocks(monkeypatch):
    whole = examples.best_and_worst([first()], CAPTION_IMAGE, CAPTIONS)
    monkeypatch.setattr(examples, "_BLOCK_SCORES", 1)
    assert examples.best_and_worst([first()], CAPTION_IMAGE, CAPTIONS) == whole


def test_one_kind_may_be_empty():
    images = np.eye(4, dtype=np.float32)
    right = examples.Embedded("m", images, images[CAPTION_IMAGE], np.ones(5, int))
    assert examples.best_and_worst([right], CAPTION_IMAGE, CAPTIONS).worst == ()


def test_arrays_of_another_set_are_refused():
    with pytest.raises(ValueError, match="first: 5 ranks and 5 text embeddings for 4 captions"):
        examples.best_and_worst([first()], CAPTION_IMAGE, CAPTIONS[:4])
