"""Gwet's agreement coefficients AC1 and AC2 for any number of raters, with missing ratings.

K. L. Gwet, "Computing inter-rater reliability and its variance in the presence of high
agreement", British Journal of Mathematical and Statistical Psychology 61, 2008 (AC1); K. L. Gwet,
"Handbook of Inter-Rater Reliability", 4th edition, 2014 (weights, missing ratings).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import special

Weights = Literal["identity", "ordinal", "quadratic"]
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Agreement:
    """An agreement coefficient and how sure it is.

    Attributes:
      coefficient: 1 for full agreement, 0 for what chance alone gives.
      standard_error: over the choice of subjects; NaN for a single subject.
      low: lower end of the 95% interval, at least -1.
      high: upper end, at most 1.
      observed: weighted share of agreement that was seen.
      expected: weighted share of agreement that chance alone would give.
      subjects: subjects with at least one rating.
      compared: subjects with at least two, which alone show agreement.
    """

    coefficient: float
    standard_error: float
    low: float
    high: float
    observed: float
    expected: float
    subjects: int
    compared: int


def gwet_ac(
    ratings: np.ndarray, categories: Sequence[float], weights: Weights = "ordinal"
) -> Agreement:
    """Gwet's AC1 (identity weights) or AC2 (other weights).

    With r_ik raters who put subject i into category k, r_i = Σ_k r_ik, q categories, weights
    w_kl, T = Σ w_kl, n subjects of which n' have r_i ≥ 2:

        observed of i      a_i = Σ_k r_ik (Σ_l w_kl r_il - 1) / (r_i (r_i - 1))
        observed           p_a = Σ_{r_i ≥ 2} a_i / n'
        use of category k  π_k = Σ_i r_ik / r_i / n
        expected           p_e = T / (q (q - 1)) · Σ_k π_k (1 - π_k)
        coefficient        γ = (p_a - p_e) / (1 - p_e)

    Its variance is that of the mean of n terms, one for each subject:

        e_i = T / (q (q - 1)) · Σ_k (1 - π_k) r_ik / r_i
        γ_i = [r_i ≥ 2] n / n' · (a_i - p_e) / (1 - p_e) - 2 (1 - γ) (e_i - p_e) / (1 - p_e)
        var = Σ_i (γ_i - γ)² / (n (n - 1))

    and the interval is γ ± t · √var with Student's t of n - 1 degrees of freedom.

    Args:
      ratings: [subjects, raters] numbers, NaN where a rating is missing.
      categories: all grades that could be given, used or not, in ascending order.
      weights: what a disagreement still counts: `identity` nothing; `ordinal`
        1 - C(d + 1, 2) / C(q, 2) and `quadratic` 1 - (d / (q - 1))² for grades d places apart.

    Raises:
      ValueError: fewer than two categories, a rating that is none of them, or no subject that
        two raters have rated.
    """
    counts = _counts(np.asarray(ratings, float), categories)
    raters = counts.sum(1)
    several = raters >= 2
    n, compared = len(counts), int(several.sum())
    if not compared:
        raise ValueError("no subject has two ratings, so there is no agreement to measure")
    table = weight_table(len(categories), weights)
    pairs = np.where(several, raters * (raters - 1), 1)
    agreed = np.where(several, (counts * (counts @ table - 1)).sum(1) / pairs, 0)
    observed = agreed.sum() / compared
    shares = counts / raters[:, None]
    use = shares.mean(0)
    scale = table.sum() / (len(categories) * (len(categories) - 1))
    expected = scale * (use * (1 - use)).sum()
    coefficient = (observed - expected) / (1 - expected)

    own = n / compared * np.where(several, agreed - expected, 0) / (1 - expected)
    chance = scale * shares @ (1 - use)
    terms = own - 2 * (1 - coefficient) * (chance - expected) / (1 - expected)
    error = low = high = math.nan
    if n > 1:
        error = math.sqrt(((terms - coefficient) ** 2).sum() / (n * (n - 1)))
        reach = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error
        low, high = max(-1.0, coefficient - reach), min(1.0, coefficient + reach)
    return Agreement(
        float(coefficient), error, float(low), float(high), float(observed), float(expected),
        n, compared,
    )  # fmt: skip


def weight_table(categories: int, weights: Weights) -> np.ndarray:
    """What it counts when two raters give grades k and l: float [categories, categories]."""
    apart = np.abs(np.subtract.outer(np.arange(categories), np.arange(categories)))
    if weights == "identity":
        return (apart == 0).astype(float)
    if weights == "ordinal":
        return 1 - apart * (apart + 1) / (categories * (categories - 1))
    return 1 - (apart / (categories - 1)) ** 2


def _counts(ratings: np.ndarray, categories: Sequence[float]) -> np.ndarray:
    """Raters who chose each category: float [subjects with a rating, categories]."""
    if len(categories) < 2:
        raise ValueError(f"{len(categories)} categories: agreement needs at least two")
    matches = ratings[:, :, None] == np.asarray(categories, float)
    stray = ~np.isnan(ratings) & ~matches.any(-1)
    if stray.any():
        raise ValueError(f"rating {ratings[stray][0]:g} is none of {list(categories)}")
    counts = matches.sum(1).astype(float)
    return counts[counts.sum(1) > 0]
