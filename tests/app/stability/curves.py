"""Synthetic curves: healthy ones of several shapes and noises, and what can happen to them."""

import math
import random
from collections.abc import Callable

from app.stability.curves import Point, curve_of

Noise = Callable[[random.Random, float], float]  # of a standard deviation, with mean 0
Shape = Callable[[float], float]  # of the share of the run that is done

NOISES: dict[str, Noise] = {
    "normal": lambda draw, sigma: draw.gauss(0, sigma),
    "lognormal": lambda draw, sigma: math.exp(draw.gauss(0, sigma)) - 1,
    "gamma": lambda draw, sigma: sigma * (draw.gammavariate(4, 1) - 4) / 2,
}
SHAPES: dict[str, Shape] = {
    "exponential": lambda done: 1 + 1.5 * math.exp(-4 * done),
    "slow": lambda done: 1 + 1.5 * math.exp(-2 * done),
    "power": lambda done: 3 * (1 + 30 * done) ** -0.25,
    "linear": lambda done: 3 - 1.5 * done,
}


def losses(
    shape: Shape, *, steps: int, sigma: float, seed: int, noise: str = "normal"
) -> list[float]:
    """A loss at each of `steps`; its noise is `sigma` of the loss."""
    draw = random.Random(seed)
    return [shape(step / steps) * (1 + NOISES[noise](draw, sigma)) for step in range(1, steps + 1)]


def train_curve(values: list[float]) -> list[Point]:
    return curve_of(range(1, len(values) + 1), values)


def valid_curve(values: list[float], *, steps: int) -> list[Point]:
    """Evaluations at even distances, the first one before the first step."""
    return curve_of([steps * place // (len(values) - 1) for place in range(len(values))], values)


def evaluations(
    shape: Shape, *, count: int, steps: int, sigma: float = 0.001, seed: int = 0
) -> list[Point]:
    draw = random.Random(seed)
    values = [shape(place / count) * (1 + draw.gauss(0, sigma)) for place in range(count + 1)]
    return valid_curve(values, steps=steps)
