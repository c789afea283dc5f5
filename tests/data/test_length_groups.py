import itertools
from math import comb

import numpy as np
import pytest

from clip_italian.data import length_groups
from clip_italian.data.length_groups import LengthPlan, choose_groups, layout, one_group


def flops(lengths):
    return 10.0 * lengths + 0.1 * lengths**2


def tail(rows, p, most):
    """Chance of more than `most` among `rows`, each with chance p."""
    chances = [comb(rows, k) * p**k * (1 - p) ** (rows - k) for k in range(most + 1, rows + 1)]
    return sum(chances)


def brute_force(histogram, rows, shares, most_groups):
    longest = len(histogram) - 1
    share = {n: histogram[n + 1 :].sum() / histogram.sum() for n in range(longest + 1)}
    whole = rows * flops(longest)
    plans = []
    for number in range(1, most_groups + 1):
        for lengths in itertools.combinations(sorted({*range(4, longest, 4), longest}), number):
            for parts in itertools.product(range(1, rows // shares + 1), repeat=number):
                if sum(parts) * shares == rows:
                    sizes = tuple(part * shares for part in parts)
                    after = [rows - end for end in itertools.accumulate(sizes)]
                    over = sum(
                        tail(rows, share[n], left) for n, left in zip(lengths, after, strict=True)
                    )
                    cost = sum(k * flops(n) for k, n in zip(sizes, lengths, strict=True))
                    cost += whole * (over + number * length_groups._GROUP_COST)
                    plans.append((cost, lengths, sizes, min(1.0, over)))
    return min(plans)


@pytest.mark.parametrize(("rows", "shares"), [(8, 1), (8, 2), (12, 3), (6, 6), (9, 1)])
def test_the_plan_is_the_best_of_all(rows, shares):
    random = np.random.default_rng(rows)
    several = 0
    for _ in range(8):
        longest = int(random.integers(3, 20))
        histogram = random.random(longest + 1) ** 4 * (random.random(longest + 1) < 0.7)
        histogram[2] += 0.5
        plan = choose_groups(histogram, rows=rows, shares=shares, most_groups=3, cost=flops)
        _, lengths, sizes, overflow = brute_force(histogram, rows, shares, 3)
        assert (plan.lengths, plan.rows) == (lengths, sizes)
        assert plan.overflow == pytest.approx(overflow, abs=1e-12)
        several += len(lengths) > 1
    assert several > 0 or shares == rows


def test_equal_captions_need_one_group_that_holds_them():
    histogram = np.zeros(97)
    histogram[13] = 5
    plan = choose_groups(histogram, rows=64, shares=8, most_groups=4, cost=flops)
    assert plan == LengthPlan((16,), (64,), 0.0)
    assert plan.padding(histogram) == pytest.approx(3 / 16)


def test_two_lengths_get_two_groups():
    # Half of the captions have 4 tokens and half have 40: about half of the rows each, and some
    # room for batches that have more long ones.
    histogram = np.zeros(41)
    histogram[[4, 40]] = 1
    plan = choose_groups(histogram, rows=1024, shares=8, most_groups=4, cost=flops)
    assert plan.lengths == (4, 40) and sum(plan.rows) == 1024 and plan.rows[1] % 8 == 0
    assert 512 < plan.rows[1] < 512 + 5 * 16  # sixteen is the standard deviation
    assert plan.overflow == pytest.approx(tail_of_half(1024, plan.rows[1]), rel=1e-9)
    assert choose_groups(histogram, rows=1024, shares=8, most_groups=1, cost=flops).lengths == (40,)


def tail_of_half(rows, most):
    return sum(comb(rows, k) for k in range(most + 1, rows + 1)) / 2**rows


def test_what_little_saves_is_no_group():
    histogram = np.zeros(97)
    histogram[[95, 90]] = 0.99, 0.01
    plan = choose_groups(histogram, rows=64, shares=1, most_groups=4, cost=flops)
    assert plan.lengths == (96,)


def test_a_batch_fits_when_the_longer_groups_hold_the_longer_captions():
    plan = LengthPlan((4, 8, 12), (4, 2, 2))
    assert plan.fits(np.array([12, 1, 8, 4, 4, 4, 7, 12]))
    assert plan.fits(np.array([1] * 8))
    assert not plan.fits(np.array([12, 1, 8, 4, 4, 5, 7, 12]))  # five longer than 4, room for four
    assert not plan.fits(np.array([12, 1, 12, 4, 4, 4, 7, 12]))
    assert not plan.fits(np.array([1] * 7 + [13]))
    order, most = plan.deal(np.array([12, 1, 8, 4, 4, 4, 7, 12]))
    assert order.tolist() == [1, 3, 4, 5, 6, 2, 0, 7] and most.tolist() == [4] * 4 + [8, 8, 12, 12]
    assert one_group(12, 3).deal(np.array([9, 3, 7]))[0].tolist() == [0, 1, 2]


def test_rows_lie_share_by_share():
    plan = LengthPlan((4, 8), (4, 2))
    assert layout(np.arange(10, 16), plan, 2).tolist() == [[10, 11, 14], [12, 13, 15]]
    assert layout(np.arange(10, 16), plan, 1).tolist() == [[10, 11, 12, 13, 14, 15]]


def test_real_lengths_leave_little_padding():
    # As MSCOCO-IT: mean 14.4, 99 % up to 25, longest 61.
    length = np.arange(97)
    histogram = np.exp(-0.5 * ((length - 14.4) / 3.6) ** 2) * (length > 5)
    histogram[26:62] += 2e-4 * histogram.sum() / 36
    plan = choose_groups(histogram, rows=1024, shares=8, most_groups=4, cost=flops)
    assert plan.overflow < 0.01 and plan.padding(histogram) < 0.25
    assert np.dot(plan.lengths, plan.rows) < 0.2 * 96 * 1024
