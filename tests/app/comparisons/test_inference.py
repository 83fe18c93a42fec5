"""The statistics agree with SciPy's, and with sums done by hand."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from app.comparisons.inference import (
    MOST_SEEDS,
    POWER,
    Difference,
    difference,
    estimate,
    holm,
    seeds_needed,
)
from app.comparisons.student import bound, two_sided_p

LOSSES = [1.40, 1.36, 1.43, 1.38, 1.41]
OTHERS = [1.33, 1.34, 1.35, 1.35, 1.30]


def by_seed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


def of(pairs: list[float]) -> Difference:
    found = difference(by_seed(pairs), by_seed([0.0] * len(pairs)))
    assert found is not None
    return found


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 19, 60, 999])
@given(t=st.floats(-200, 200))
def test_the_t_distribution_is_scipys(degrees: int, t: float):
    expected = 2 * stats.t.sf(abs(t), degrees)

    assert two_sided_p(t, degrees) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 19, 60, 999])
@pytest.mark.parametrize("confidence", [0.5, 0.6, 0.95, 0.999])
def test_its_bounds_are_scipys(degrees: int, confidence: float):
    expected = stats.t.ppf((1 + confidence) / 2, degrees)

    assert bound(confidence, degrees) == pytest.approx(expected, rel=1e-9)


def test_a_mean_has_students_interval():
    """By hand: mean 1.396, s = 0.0270185, t(4) = 2.776445, reach = 2.776445 × s / √5 = 0.033548."""
    found = estimate(LOSSES)

    assert found is not None and found.n == 5
    assert found.mean == pytest.approx(1.396) and found.std == pytest.approx(0.0270185, abs=1e-7)
    assert found.low == pytest.approx(1.396 - 0.033548, abs=1e-6)
    assert found.high == pytest.approx(1.396 + 0.033548, abs=1e-6)


def test_one_value_has_no_interval_and_none_no_mean():
    found = estimate([1.4])

    assert found is not None and (found.mean, found.n) == (1.4, 1)
    assert found.low is found.high is found.std is None
    assert estimate([]) is None


def test_a_difference_is_tested_in_pairs():
    expected = stats.ttest_rel(OTHERS, LOSSES)
    interval = expected.confidence_interval()

    found = difference(by_seed(OTHERS), by_seed(LOSSES))

    assert found is not None and found.n == 5
    assert found.mean == pytest.approx(sum(OTHERS) / 5 - sum(LOSSES) / 5)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_only_seeds_that_both_have_are_compared():
    found = difference({1: 1.0, 2: 5.0, 3: 2.0}, {1: 0.5, 3: 1.0, 4: 9.0})

    assert found is not None and (found.n, found.mean) == (2, 0.75)
    assert difference({1: 1.0}, {2: 1.0}) is None


def test_one_pair_has_no_p_value():
    found = of([0.3])

    assert (found.mean, found.p_value, found.low) == (0.3, None, None)


def test_equal_differences_leave_no_doubt():
    assert of([0.25, 0.25]).p_value == 0
    assert of([0.0, 0.0]).p_value == 1


def test_holm_multiplies_the_smallest_most_and_keeps_their_order():
    """By hand: 0.01 × 4, 0.02 × 3, 0.03 × 2 (no less than the one before it), 0.6 × 1."""
    corrected = holm([0.03, 0.01, None, 0.6, 0.02])

    assert corrected == pytest.approx([0.06, 0.04, None, 0.6, 0.06])
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []


@pytest.mark.parametrize("effect", [0.5, 1.0, 2.0])
def test_so_many_seeds_show_a_difference_four_times_in_five(effect: float):
    draw = random.Random(1)
    pilot = Difference(mean=effect, low=None, high=None, std=1.0, p_value=0.3, n=5)

    needed = seeds_needed(pilot)

    assert needed is not None
    runs = [of([draw.gauss(effect, 1) for _ in range(needed)]) for _ in range(1500)]
    shown = sum((run.p_value or 0) < 0.05 for run in runs) / len(runs)
    assert POWER - 0.04 < shown < POWER + 0.12


def test_a_difference_of_nothing_needs_more_seeds_than_there_are():
    assert seeds_needed(of([0.1, -0.1])) is None
    assert seeds_needed(of([0.3])) is None
    assert seeds_needed(of([1.0, -0.99])) is None
    almost = Difference(mean=0.1, low=None, high=None, std=1.1, p_value=0.3, n=5)
    assert MOST_SEEDS * 0.9 < (seeds_needed(almost) or math.nan) <= MOST_SEEDS
