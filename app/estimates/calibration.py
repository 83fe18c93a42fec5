"""From what a model of the arithmetic says to what this installation measured. Pure."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.estimates.pace import Counts, Pace
from app.jobs.spec import TrainSpec

NEAREST = 8  # finished jobs that are compared with
LEAST_S = 0.5  # what starting and ending a run takes at least


@dataclass(frozen=True)
class Band:
    """A number between two others."""

    low: float
    expected: float
    high: float

    def __mul__(self, factor: float) -> "Band":
        return Band(self.low * factor, self.expected * factor, self.high * factor)

    def __add__(self, other: "Band") -> "Band":
        return Band(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def within(self, least: float, most: float) -> "Band":
        return Band(*(min(max(value, least), most) for value in self._values()))

    def _values(self) -> tuple[float, float, float]:
        return self.low, self.expected, self.high


@dataclass(frozen=True)
class Kind:
    """What jobs are compared by; `method` stands for those that cost alike."""

    base_model: str
    device: str
    method: str


@dataclass(frozen=True)
class Finished:
    """A finished job: what the arithmetic says of it, and what was measured; null was not."""

    kind: Kind
    modelled: Pace
    modelled_bytes: int
    step_s: float | None
    evaluation_s: float | None
    checkpoint_s: float | None
    rest_s: float | None
    peak_bytes: float | None


@dataclass(frozen=True)
class Tier:
    """How near jobs are; `widening` multiplies the ranges that are drawn from them."""

    words: str
    widening: float
    admits: Callable[[Kind, Kind], bool]


def _same(*fields: str) -> Callable[[Kind, Kind], bool]:
    return lambda one, other: all(getattr(one, name) == getattr(other, name) for name in fields)


TIERS = (
    Tier("with {base} on {device}, trained alike", 1.1, _same("base_model", "device", "method")),
    Tier("with {base} on {device}, trained by other methods", 1.4, _same("base_model", "device")),
    Tier("with other base models on {device}", 2.0, _same("device", "method")),
    Tier("with other base models and methods on {device}", 2.5, _same("device")),
)
NO_TIER = "no finished job on {device} yet: the ranges are a guess from the sizes of {base} alone"
GUESS = {"time": 4.0, "memory": 1.6}  # how far a guess may be off, up or down
STEADY = 0.25  # memory varies by so much of what time does, on the scale of logarithms


@dataclass(frozen=True)
class Basis:
    """The finished jobs that an estimate stands on, and how far its ranges are widened."""

    jobs: Sequence[Finished]
    words: str
    widening: float | None


@dataclass(frozen=True)
class Calibrated:
    """A run's pace and memory, each as a range."""

    step_s: Band
    evaluation_s: Band
    checkpoint_s: Band
    rest_s: Band
    memory_ratio: Band

    def seconds(self, counts: Counts) -> Band:
        steps, evaluations = self.step_s * counts.steps, self.evaluation_s * counts.evaluations
        return steps + evaluations + self.checkpoint_s * counts.checkpoints + self.rest_s


def kind_of(spec: TrainSpec, device: str) -> Kind:
    """Return what a job is compared by."""
    method = spec.peft.method if spec.peft.method in ("full", "dora", "adalora") else "adapter"
    noise = " under noise" if spec.perturbation.type in ("random", "ggpo") else ""
    learned = {"supervised": "", "dpo": " on pairs", "reinforcement": " of rollouts"}[spec.method]
    ranks = " on several devices" if spec.resources.gpus > 1 else ""
    return Kind(spec.base_model, device, f"{method}{learned}{noise}{ranks}")


def basis(kind: Kind, modelled: Pace, finished: Sequence[Finished]) -> Basis:
    """Choose the nearest tier that has jobs, and those of it whose steps are most alike in size."""
    names = {"base": kind.base_model, "device": kind.device}
    for tier in TIERS:
        admitted = [job for job in finished if tier.admits(kind, job.kind)]
        if admitted:
            nearest = sorted(admitted, key=lambda job: _distance(job.modelled, modelled))[:NEAREST]
            jobs = "1 finished job" if len(nearest) == 1 else f"{len(nearest)} finished jobs"
            words = f"calibrated on {jobs} {tier.words.format(**names)}"
            return Basis(nearest, words, tier.widening * _few(len(nearest)))
    return Basis((), NO_TIER.format(**names), None)


def calibrate(modelled: Pace, found: Basis) -> Calibrated:
    """Multiply what is modelled by measured over modelled of the jobs it stands on."""
    jobs, wide = found.jobs, found.widening
    step = _ratios([(job.step_s, job.modelled.step_s) for job in jobs])
    evaluation = _ratios([(job.evaluation_s, job.modelled.evaluation_s) for job in jobs]) or step
    checkpoint = _ratios([(job.checkpoint_s, job.modelled.checkpoint_s) for job in jobs])
    rest = _ratios([(job.rest_s, job.modelled.rest_s) for job in jobs])
    held = _ratios([(job.peak_bytes, float(job.modelled_bytes)) for job in jobs])
    steady = None if wide is None else wide**STEADY
    return Calibrated(
        step_s=_band(step, wide, GUESS["time"]) * modelled.step_s,
        evaluation_s=_band(evaluation, wide, GUESS["time"]) * modelled.evaluation_s,
        checkpoint_s=_band(checkpoint, wide, GUESS["time"]) * modelled.checkpoint_s,
        rest_s=_band(rest, wide, GUESS["time"]) * modelled.rest_s,
        memory_ratio=_band(held, steady, GUESS["memory"]),
    )


def _distance(one: Pace, other: Pace) -> float:
    return abs(math.log(one.step_s / other.step_s))


def _few(jobs: int) -> float:
    """Few jobs do not show how much jobs differ."""
    return 1 + 0.5 / jobs


def _ratios(pairs: Sequence[tuple[float | None, float]]) -> list[float]:
    return [
        measured / modelled for measured, modelled in pairs if measured is not None and modelled
    ]


def _band(ratios: Sequence[float], widening: float | None, guess: float) -> Band:
    """Return the median, and the range of all but outliers, widened; without ratios a guess."""
    if not ratios or widening is None:
        return Band(1 / guess, 1.0, guess)
    ordered = sorted(ratios)
    low = ordered[len(ordered) // NEAREST]
    high = ordered[-1 - len(ordered) // NEAREST]
    return Band(low / widening, statistics.median(ordered), high * widening)
