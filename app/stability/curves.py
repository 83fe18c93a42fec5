"""Curves of a run, and the robust statistics that tell an event from noise. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import median

TO_SIGMA = 1.4826  # from a median of absolute values to the standard deviation of a normal one
SECOND_DIFFERENCE = math.sqrt(6.0)  # by how much it is wider than the noise it is taken of


@dataclass(frozen=True)
class Point:
    """A stretch of steps, or one step: the lowest, the highest and the mean value in it."""

    first_step: int
    last_step: int
    low: float
    high: float
    mean: float


Curve = Sequence[Point]


def curve_of(steps: Sequence[int], values: Sequence[float]) -> list[Point]:
    """Return the curve that has one value at each step."""
    return [
        Point(step, step, value, value, value) for step, value in zip(steps, values, strict=True)
    ]


def finite_start(curve: Curve) -> Curve:
    """Return a curve up to its first value that is not finite."""
    for place, point in enumerate(curve):
        if not math.isfinite(point.low + point.high + point.mean):
            return curve[:place]
    return curve


def means(curve: Curve) -> list[float]:
    return [point.mean for point in curve]


def noise(values: Sequence[float]) -> float:
    """Estimate the standard deviation of what is no trend; 0 for fewer than 5 values.

    Taken from second differences, which no slope moves, by a median, which no spike moves.
    """
    if len(values) < 5:
        return 0.0
    return TO_SIGMA * median(map(abs, second_differences(values))) / SECOND_DIFFERENCE


def second_differences(values: Sequence[float]) -> list[float]:
    return [
        before - 2 * here + after
        for before, here, after in zip(values, values[1:], values[2:], strict=False)
    ]


def smoothed(values: Sequence[float], *, reach: int) -> list[float]:
    """Return the median of each value and up to `reach` ones on each side of it."""
    return [
        median(values[max(place - reach, 0) : place + reach + 1]) for place in range(len(values))
    ]


def blocks(curve: Curve, count: int) -> list[Point]:
    """Return a curve in `count` stretches of as many points each, the mean being their median."""
    edges = [len(curve) * number // count for number in range(count + 1)]
    return [_joined(curve[start:stop]) for start, stop in pairwise(edges) if stop > start]


def slope(values: Sequence[float]) -> float:
    """Return the change from one value to the next, by Theil and Sen: the median over all pairs."""
    return median(
        (later - earlier) / (there - here)
        for (here, earlier), (there, later) in combinations(enumerate(values), 2)
    )


def change(values: Sequence[float], *, sigma: float) -> tuple[float, float]:
    """Return how far a straight line through the values rises, and how uncertain that is (2 σ).

    Args:
        sigma: the least that their noise is taken to be.
    """
    steep = slope(values)
    rest = [value - steep * place for place, value in enumerate(values)]
    middle = median(rest)
    sigma = max(sigma, TO_SIGMA * median(abs(value - middle) for value in rest))
    return steep * (len(values) - 1), 2 * sigma * math.sqrt(12 / len(values))


def _joined(points: Curve) -> Point:
    return Point(
        first_step=points[0].first_step,
        last_step=points[-1].last_step,
        low=min(point.low for point in points),
        high=max(point.high for point in points),
        mean=median(point.mean for point in points),
    )
