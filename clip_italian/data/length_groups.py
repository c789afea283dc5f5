"""Into which groups of one length the captions of a batch are sorted, so that little is padded.

The B captions of a batch are sorted by length. The first n_1 go to a group of length L_1, the
next n_2 to one of length L_2, and so on: static shapes, one compiled step. A batch *overflows*
when more captions are longer than L_g than the groups after g have rows; it takes the second
plan, one group of the largest length, so that no caption is ever cut.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

MULTIPLE = 4  # lengths of groups, in tokens; the longest may be any number
_GROUP_COST = 0.005  # of a group, beside its FLOPs: part of the cost of padding the whole batch


@dataclasses.dataclass(frozen=True)
class LengthPlan:
    """Groups of a batch, shortest first.

    Attributes:
      lengths: tokens of each group's captions, rising.
      rows: captions of each group over all devices and hosts; multiples of the shares.
      overflow: chance that a batch does not fit (an upper bound from binomial tails).
    """

    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    overflow: float = 0.0

    def fits(self, lengths: np.ndarray) -> bool:
        """Whether captions of these lengths (int [B]) find a place."""
        return bool((self.deal(lengths)[1] >= np.sort(lengths)).all())

    def deal(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Captions in the order of the groups: their indices [B], and each one's group length.

        A single group keeps the order it is given.
        """
        if len(self.lengths) == 1:
            order = np.arange(len(lengths))
        else:
            order = np.argsort(lengths, kind="stable")
        return order, np.repeat(np.array(self.lengths, np.int64), self.rows)

    def padding(self, histogram: np.ndarray) -> float:
        """Share of token slots that hold padding, for captions of this histogram."""
        mean = histogram @ np.arange(len(histogram)) / histogram.sum()
        return 1 - mean * sum(self.rows) / np.dot(self.lengths, self.rows)


def one_group(length: int, rows: int) -> LengthPlan:
    """The plan that everything fits into."""
    return LengthPlan((length,), (rows,))


def layout(order: np.ndarray, plan: LengthPlan, shares: int) -> np.ndarray:
    """Captions in the order of the groups [B] → in the order of batch rows [shares, B / shares].

    Share k gets the k-th part of every group, its groups one after another.
    """
    ends = np.cumsum(plan.rows)[:-1]
    return np.hstack([part.reshape(shares, -1) for part in np.split(order, ends)])


def choose_groups(
    histogram: np.ndarray,
    *,
    rows: int,
    shares: int,
    most_groups: int,
    cost: Callable[[np.ndarray], np.ndarray],
) -> LengthPlan:
    """The plan of least expected cost: exact, over all lengths and row counts.

    Of every plan the cost is Σ rows_g · cost(length_g), a little for each group, and the chance
    of an overflow times what the second plan costs.

    Args:
      histogram: float [max_length + 1], how often a caption has 0, 1, ... max_length tokens.
      rows: captions of a batch over all devices and hosts.
      shares: every group's rows are a multiple of it; divides `rows`.
      most_groups: at most so many groups.
      cost: lengths int [n] → cost of one caption [n], e.g. FLOPs of the text tower; rising.
    """
    longest = len(histogram) - 1
    lengths = np.append(np.arange(MULTIPLE, longest, MULTIPLE), longest)
    left = np.arange(0, rows + 1, shares)  # rows of the groups after a length
    tails = _tails(histogram, lengths, rows)[:, left]
    price = np.asarray(cost(lengths), np.float64)
    whole = rows * price[-1]
    # best[1 + i, r]: least cost of groups of which the last has length i and leaves left[r] rows.
    best = np.full((1 + len(lengths), len(left)), np.inf)
    best[0, -1] = 0.0  # no group yet, all rows left
    found: list[tuple[float, list[tuple[int, int]]]] = []
    came_from: list[np.ndarray] = []
    for _ in range(min(most_groups, len(left) - 1, len(lengths))):
        best, origin = _add_group(best, left, price)
        best[1:] += tails * whole + _GROUP_COST * whole
        came_from.append(origin)
        last = int(best[:, 0].argmin())
        found.append((best[last, 0], _trace(came_from, last)))
    _, groups = min(found, key=lambda one: one[0])
    ends = [int(left[r]) for _, r in groups]
    return LengthPlan(
        tuple(int(lengths[i]) for i, _ in groups),
        tuple(before - end for before, end in zip([rows, *ends], ends, strict=False)),
        float(min(1.0, sum(tails[i, r] for i, r in groups))),
    )


def _add_group(
    best: np.ndarray, left: np.ndarray, price: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One more group: least costs like `best`, and from which of its places each one comes."""
    states = np.full_like(best, np.inf)
    origin = np.zeros(best.shape, np.int64)
    shorter = np.full(len(left), np.inf)  # the best over all shorter lengths, and which it is
    which = np.zeros(len(left), np.int64)
    for i, one in enumerate(price, start=1):
        which = np.where(best[i - 1] < shorter, i - 1, which)
        shorter = np.minimum(best[i - 1], shorter)
        # From more rows left to fewer: min over r > r' of shorter[r] + (left[r] - left[r']) · one.
        costs = shorter + left * one
        at = len(left) - 1 - _running_argmin(costs[:0:-1])[::-1]
        states[i, :-1] = costs[at] - left[:-1] * one
        origin[i, :-1] = which[at] * len(left) + at
    return states, origin


def _running_argmin(values: np.ndarray) -> np.ndarray:
    """Index of the least among the first 1, 2, ... values."""
    least = np.minimum.accumulate(values)
    new = np.append(True, least[1:] < least[:-1])
    return np.maximum.accumulate(np.where(new, np.arange(len(values)), 0))


def _trace(came_from: list[np.ndarray], last: int) -> list[tuple[int, int]]:
    """Index of its length and of the rows it leaves, for every group of the plan that ends so."""
    i, r = last, 0
    groups = []
    for origin in reversed(came_from):
        groups.append((i - 1, r))
        i, r = divmod(int(origin[i, r]), origin.shape[1])
    return groups[::-1]


def _tails(histogram: np.ndarray, lengths: np.ndarray, rows: int) -> np.ndarray:
    """[lengths, rows + 1]: chance that more than r of `rows` captions are longer than a length."""
    longer = 1 - np.cumsum(histogram)[lengths] / histogram.sum()
    longer[-1] = 0.0  # exactly
    counts = np.arange(rows + 1)
    logs = np.append(0.0, np.cumsum(np.log(np.arange(1, rows + 1))))
    choose = logs[-1] - logs - logs[::-1]
    tails = np.zeros((len(lengths), rows + 1))
    for tail, p in zip(tails, np.clip(longer, 0, 1), strict=True):
        if 0 < p < 1:
            chance = np.exp(choose + counts * np.log(p) + (rows - counts) * np.log1p(-p))
            tail[:-1] = np.minimum(np.cumsum(chance[::-1])[::-1][1:], 1.0)
        else:
            tail[:-1] = p
    return tails
