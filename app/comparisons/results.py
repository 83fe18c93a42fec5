"""What the runs of a comparison say of its methods. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from app.comparisons.inference import (
    SIGNIFICANT,
    Difference,
    Estimate,
    difference,
    estimate,
    holm,
)
from app.comparisons.passes import passes
from app.comparisons.runs import LOSS, SCORES, SHARPNESS, Run

POINT = 0.01  # of validation loss: what a point of the cost is


@dataclass(frozen=True)
class Cost:
    """What a run of the method takes on average; the memory is the most of any.

    `seconds_per_point` is for each POINT by which the loss fell; None where it did not.
    """

    seconds: float
    gpu_seconds: float
    forward_backward_passes: float
    peak_memory_bytes: float | None
    seconds_per_point: float | None


@dataclass(frozen=True)
class Against:
    """How a method ends beside the first one; `adjusted_p` is Holm's, over all methods."""

    found: Difference
    adjusted_p: float | None
    significant: bool


@dataclass(frozen=True)
class Result:
    """A method's runs that ended with a loss, and what they say; `missing` ended without one."""

    name: str
    seeds: list[int]
    missing: int
    loss: Estimate | None
    scores: dict[str, Estimate]
    sharpness: dict[str, Estimate]
    cost: Cost | None
    against_first: Against | None


def results(names: Sequence[str], runs: Sequence[Run]) -> list[Result]:
    """Return what is known of each method, by its place; all that is over counts.

    Nothing is significant before every run is over: who looks again and again finds differences
    that are none.
    """
    over = all(run.over for run in runs)
    of_method = [[run for run in runs if run.method == index] for index in range(len(names))]
    found = [_result(name, mine) for name, mine in zip(names, of_method, strict=True)]
    first = _losses(of_method[0])
    differences = [difference(_losses(mine), first) for mine in of_method[1:]]
    adjusted = holm([each.p_value if each else None for each in differences])
    for index, (each, p) in enumerate(zip(differences, adjusted, strict=True), 1):
        if each is not None:
            significant = over and p is not None and p < SIGNIFICANT
            against = Against(each, adjusted_p=p, significant=significant)
            found[index] = replace(found[index], against_first=against)
    return found


def _result(name: str, runs: Sequence[Run]) -> Result:
    counted = [run for run in runs if run.counts]
    return Result(
        name=name,
        seeds=[run.seed for run in counted],
        missing=sum(run.over and not run.counts for run in runs),
        loss=estimate([run.end[LOSS] for run in counted]),
        scores=_estimates(counted, {score: score for score in SCORES}),
        sharpness=_estimates(counted, SHARPNESS),
        cost=_cost(counted),
        against_first=None,
    )


def _estimates(runs: Sequence[Run], names: dict[str, str]) -> dict[str, Estimate]:
    """Return the mean of each metric that the runs have measured; `names` says what it is called"""
    found = {}
    for shown, name in names.items():
        values = [value for run in runs if math.isfinite(value := run.end.get(name, math.nan))]
        if (mean := estimate(values)) is not None:
            found[shown] = mean
    return found


def _cost(runs: Sequence[Run]) -> Cost | None:
    if not runs:
        return None
    seconds = fmean(run.seconds for run in runs)
    memory = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    fallen = fmean(run.start.get(LOSS, math.nan) - run.end[LOSS] for run in runs)
    return Cost(
        seconds=seconds,
        gpu_seconds=fmean(run.gpu_seconds for run in runs),
        forward_backward_passes=fmean(passes(run.spec, steps=run.steps) for run in runs),
        peak_memory_bytes=max(memory, default=None),
        seconds_per_point=seconds / (fallen / POINT) if fallen > 0 else None,
    )


def _losses(runs: Sequence[Run]) -> dict[int, float]:
    return {run.seed: run.end[LOSS] for run in runs if run.counts}
