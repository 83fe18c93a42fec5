"""Student's t distribution, which tells how far a mean of few values can be trusted. Pure.

Degrees of freedom are whole numbers here, and then the distribution is a finite sum: Abramowitz and
Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4. A library would bring numpy along.
"""

import math
from functools import lru_cache

HALVINGS = 100


def two_sided_p(t: float, degrees: int) -> float:
    """Return the probability of a value as far from 0 as t, or farther; below 1e-15 it is 0."""
    return max(1.0 - _within(math.atan2(abs(t), math.sqrt(degrees)), degrees), 0.0)


@lru_cache(maxsize=256)  # a curve asks for the same one at every point
def bound(confidence: float, degrees: int) -> float:
    """Return the t that the distribution stays within on both sides, with this probability."""
    low, high = 0.0, math.pi / 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _within(theta: float, degrees: int) -> float:
    """Return A(t|ν), the probability of lying within ±t, for θ = atan(t / √ν)."""
    sine, square = math.sin(theta), math.cos(theta) ** 2
    odd = degrees % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0 if degrees == 1 else term
    for number in range(3 if odd else 2, degrees - 1, 2):
        term *= square * (number - 1) / number
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
