import math

import numpy as np
import pytest

from data_prep.agreement import gwet_ac, weight_table

NAN = math.nan
# Twelve units, four raters, grades 1 to 5: the example of K. L. Gwet's handbook that his package
# irrCAC ships as raw4raters. It prints AC1 0.7754441 (error 0.1429500, interval from 0.461) and,
# with quadratic weights, AC2 0.9140007 (0.1039622, from 0.685). Its Python edition gives for
# ordinal weights 0.8989398 (0.1069035, from 0.6636467).
FOUR_RATERS = np.array(
    [
        [1, 1, NAN, 1],
        [2, 2, 3, 2],
        [3, 3, 3, 3],
        [3, 3, 3, 3],
        [2, 2, 2, 2],
        [1, 2, 3, 4],
        [4, 4, 4, 4],
        [1, 1, 2, 1],
        [2, 2, 2, 2],
        [NAN, 5, 5, 5],
        [NAN, NAN, 1, 1],
        [NAN, NAN, 3, NAN],
    ]
)
GRADES = (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("weights", "coefficient", "error", "low", "observed", "expected"),
    [
        ("identity", 0.77544407, 0.14294995, 0.46081335, 0.81818182, 0.19032118),
        ("ordinal", 0.89893977, 0.10690352, 0.6636467, 0.96818182, 0.68515625),
        ("quadratic", 0.91400072, 0.10396224, 0.68518137, 0.97537879, 0.71370443),
    ],
)
def test_published_example(weights, coefficient, error, low, observed, expected):
    found = gwet_ac(FOUR_RATERS, GRADES, weights)
    assert found.coefficient == pytest.approx(coefficient, abs=1e-8)
    assert found.standard_error == pytest.approx(error, abs=1e-8)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-7), 1)
    assert found.observed == pytest.approx(observed, abs=1e-8)
    assert found.expected == pytest.approx(expected, abs=1e-8)
    assert (found.subjects, found.compared) == (12, 11)


def test_two_raters_by_hand():
    # Agreement on 3 of 4; grade 1 is used 5 times of 8: chance = 2 · 5/8 · 3/8 = 15/32.
    ratings = np.array([[1, 1], [1, 1], [2, 2], [1, 2]])
    found = gwet_ac(ratings, (1, 2), "identity")
    assert found.expected == pytest.approx(15 / 32)
    assert found.coefficient == pytest.approx((3 / 4 - 15 / 32) / (17 / 32))


def test_ordinal_weights_of_four_grades():
    expected = [[6, 5, 3, 0], [5, 6, 5, 3], [3, 5, 6, 5], [0, 3, 5, 6]]
    np.testing.assert_allclose(weight_table(4, "ordinal"), np.array(expected) / 6)


def test_all_the_same_grade_is_full_agreement():
    found = gwet_ac(np.full((100, 3), 4), (1, 2, 3, 4))
    assert (found.coefficient, found.standard_error, found.low, found.high) == (1, 0, 1, 1)


def test_unused_grades_count():
    ratings = np.array([[3, 4], [4, 4], [3, 3], [4, 3]])
    assert gwet_ac(ratings, (3, 4)).coefficient == pytest.approx(0)
    assert gwet_ac(ratings, (1, 2, 3, 4)).coefficient > 0.5


def test_unrated_subjects_and_the_order_of_raters_do_not_matter():
    expected = gwet_ac(FOUR_RATERS, GRADES)
    more = np.vstack([FOUR_RATERS[::-1, ::-1], np.full((3, 4), NAN)])
    found = gwet_ac(more, GRADES)
    assert found.coefficient == pytest.approx(expected.coefficient)
    assert found.standard_error == pytest.approx(expected.standard_error)


def test_one_subject_has_no_interval():
    found = gwet_ac(np.array([[3, 4, 4]]), (1, 2, 3, 4))
    assert math.isnan(found.standard_error) and math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize(
    ("ratings", "categories", "message"),
    [
        ([[1, NAN], [NAN, 2]], (1, 2), "no subject has two ratings"),
        ([[1, 5]], (1, 2, 3, 4), "rating 5 is none of"),
        ([[1, 1]], (1,), "at least two"),
    ],
)
def test_what_cannot_be_measured(ratings, categories, message):
    with pytest.raises(ValueError, match=message):
        gwet_ac(np.array(ratings), categories)
