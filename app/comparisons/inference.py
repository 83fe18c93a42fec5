"""What a few runs say of a method: a mean with its interval, a paired difference, its chance. Pure.

Intervals have 95 % confidence and are Student's. Differences are paired by seed: runs of one seed
see the same rows in the same order, so what the order does to both falls out of the difference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

from app.comparisons.student import bound, two_sided_p

CONFIDENCE = 0.95
SIGNIFICANT = 0.05
POWER = 0.8
MOST_SEEDS = 1000
NORMAL = NormalDist()


@dataclass(frozen=True)
class Estimate:
    """A mean over n runs and its interval; of one run there is no interval."""

    mean: float
    low: float | None
    high: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """How much higher one method ends than another, over n seeds that both have.

    `p_value` is of the paired t-test; of one seed there is none.
    """

    mean: float
    low: float | None
    high: float | None
    std: float | None
    p_value: float | None
    n: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean of values with its interval; None of no value."""
    if not values:
        return None
    mean = fmean(values)
    if len(values) == 1:
        return Estimate(mean, None, None, None, 1)
    std = stdev(values)
    reach = half_width(std, len(values))
    return Estimate(mean, mean - reach, mean + reach, std, len(values))


def half_width(std: float, n: int) -> float:
    """Return how far the interval of a mean reaches to either side, for n > 1 values."""
    return bound(CONFIDENCE, n - 1) * std / math.sqrt(n)


def difference(values: dict[int, float], other: dict[int, float]) -> Difference | None:
    """Compare two methods by the seeds that both have; None where they share none."""
    shared = sorted(values.keys() & other.keys())
    pairs = [values[seed] - other[seed] for seed in shared]
    found = estimate(pairs)
    if found is None:
        return None
    return Difference(found.mean, found.low, found.high, found.std, _p_value(found), n=len(pairs))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for how many there are (Holm's step-down method); None stays None."""
    ranked = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(ranked):
        highest = max(highest, min(p * (len(ranked) - rank), 1.0))
        corrected[place] = highest
    return corrected


def seeds_needed(found: Difference) -> int | None:
    """Return how many seeds would show such a difference four times in five.

    None where that cannot be told, or is more than MOST_SEEDS.
    """
    if found.std is None or found.mean == 0:
        return None
    ratio = (found.std / found.mean) ** 2
    fewest = math.floor((NORMAL.inv_cdf((1 + CONFIDENCE) / 2) + NORMAL.inv_cdf(POWER)) ** 2 * ratio)
    for n in range(max(fewest, 2), MOST_SEEDS + 1):  # the t distribution asks for a few more
        reach = bound(CONFIDENCE, n - 1) + bound(2 * POWER - 1, n - 1)
        if n >= reach**2 * ratio:
            return n
    return None


def _p_value(found: Estimate) -> float | None:
    if found.std is None:
        return None
    if found.std == 0:
        return 1.0 if found.mean == 0 else 0.0
    return two_sided_p(found.mean / (found.std / math.sqrt(found.n)), found.n - 1)
