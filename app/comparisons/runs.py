"""Reads what the runs of a comparison have come to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.jobs.queue import GPUS
from app.jobs.spec import TrainSpec
from app.jobs.states import TERMINAL, JobStatus
from app.tables import Attempt, ComparisonJob, Job, Metric

LOSS = "valid_loss"
SCORES = (
    "valid_mean_token_accuracy",
    "valid_accuracy",
    "valid_exact_match",
    "valid_f1",
    "valid_mcc",
    "valid_rewards_accuracy",
    "valid_rewards_margin",
)
SHARPNESS = {"worst": "valid_sharpness_worst", "mean": "valid_sharpness_mean"}
MOST_CURVE_STEPS = 300


@dataclass(frozen=True)
class Run:
    """One job of a comparison. `method` is its place in the body.

    `start` and `end` are what the clean weights are measured at before the first and after the last
    step; `end` is empty until the job has succeeded.
    """

    job_id: str
    method: int
    seed: int
    status: JobStatus
    spec: TrainSpec
    steps: int
    seconds: float
    gpu_seconds: float
    peak_memory_bytes: float | None
    start: dict[str, float]
    end: dict[str, float]

    @property
    def counts(self) -> bool:
        """Whether it has come to a loss to be compared."""
        return math.isfinite(self.end.get(LOSS, math.nan))

    @property
    def over(self) -> bool:
        return self.status in TERMINAL


@dataclass(frozen=True)
class CurvePoint:
    """The losses of a method's runs at one step: their mean, their spread, how many they are."""

    step: int
    mean: float
    std: float | None
    n: int


async def of_comparison(tx: AsyncSession, comparison_id: str) -> list[Run]:
    """Return the runs by method and seed."""
    query = (
        select(ComparisonJob.method, ComparisonJob.seed, Job, GPUS.label("gpus"))
        .join(Job, Job.id == ComparisonJob.job_id)
        .where(ComparisonJob.comparison_id == comparison_id)
        .order_by(ComparisonJob.method, ComparisonJob.seed)
    )
    rows = (await tx.execute(query)).all()
    ids = [row.Job.id for row in rows]
    seconds = await _seconds(tx, ids)
    memory = await _peak_memory(tx, ids)
    ends = await _measured(tx, ids)
    return [
        Run(
            job_id=row.Job.id,
            method=row.method,
            seed=row.seed,
            status=row.Job.status,
            spec=TrainSpec.model_validate(row.Job.spec),
            steps=row.Job.step,
            seconds=seconds.get(row.Job.id, 0.0),
            gpu_seconds=seconds.get(row.Job.id, 0.0) * row.gpus,
            peak_memory_bytes=memory.get(row.Job.id),
            start=ends.get((row.Job.id, 0), {}),
            end=ends.get((row.Job.id, row.Job.step), {})
            if row.Job.status == JobStatus.SUCCEEDED
            else {},
        )
        for row in rows
    ]


async def curves(tx: AsyncSession, comparison_id: str) -> dict[int, list[CurvePoint]]:
    """Return the validation loss of each method by step, at MOST_CURVE_STEPS steps at most.

    Runs that are under way count with what they have come to; those that failed do not.
    """
    of_all = (
        ComparisonJob.comparison_id == comparison_id,
        Metric.name == LOSS,
        # PostgreSQL sorts NaN above infinity.
        Metric.value < math.inf,
        Metric.value > -math.inf,
        Job.status.not_in((JobStatus.FAILED, JobStatus.CANCELLED)),
    )
    joined = (
        select()
        .select_from(ComparisonJob)
        .join(Job, Job.id == ComparisonJob.job_id)
        .join(Metric, Metric.job_id == Job.id)
        .where(*of_all)
    )
    evaluated = joined.add_columns(Metric.step).distinct().order_by(Metric.step)
    steps = _thinned(list(await tx.scalars(evaluated)))
    value = Metric.value
    query = (
        joined.add_columns(
            ComparisonJob.method,
            Metric.step,
            func.avg(value).label("mean"),
            func.stddev_samp(value).label("std"),
            func.count(value).label("n"),
        )
        .where(Metric.step.in_(steps))
        .group_by(ComparisonJob.method, Metric.step)
        .order_by(ComparisonJob.method, Metric.step)
    )
    found: dict[int, list[CurvePoint]] = {}
    for row in await tx.execute(query):
        found.setdefault(row.method, []).append(CurvePoint(row.step, row.mean, row.std, row.n))
    return found


async def _seconds(tx: AsyncSession, ids: Sequence[str]) -> dict[str, float]:
    """Return for how long each job has run, over all its attempts."""
    until = func.coalesce(Attempt.ended_at, func.now())
    lasted_s = func.sum(func.extract("epoch", until - Attempt.started_at))
    query = select(Attempt.job_id, lasted_s).where(Attempt.job_id.in_(ids))
    return {job_id: float(s) for job_id, s in await tx.execute(query.group_by(Attempt.job_id))}


async def _peak_memory(tx: AsyncSession, ids: Sequence[str]) -> dict[str, float]:
    query = select(Metric.job_id, func.max(Metric.value).label("highest")).where(
        Metric.job_id.in_(ids), Metric.name == "memory_bytes"
    )
    rows = await tx.execute(query.group_by(Metric.job_id))
    return {row.job_id: row.highest for row in rows}


async def _measured(
    tx: AsyncSession, ids: Sequence[str]
) -> dict[tuple[str, int], dict[str, float]]:
    """Return what was evaluated before the first step of each job, and at its last, by name."""
    query = (
        select(Metric.job_id, Metric.step, Metric.name, Metric.value)
        .join(Job, Job.id == Metric.job_id)
        .where(
            Metric.job_id.in_(ids),
            Metric.name.in_((LOSS, *SCORES, *SHARPNESS.values())),
            or_(Metric.step == 0, Metric.step == Job.step),
        )
    )
    found: dict[tuple[str, int], dict[str, float]] = {}
    for row in await tx.execute(query):
        found.setdefault((row.job_id, row.step), {})[row.name] = row.value
    return found


def _thinned(steps: Sequence[int]) -> Sequence[int]:
    """Return some of them, evenly: the first and the last are kept."""
    if len(steps) <= MOST_CURVE_STEPS:
        return steps
    last = len(steps) - 1
    return [steps[last * n // (MOST_CURVE_STEPS - 1)] for n in range(MOST_CURVE_STEPS)]
