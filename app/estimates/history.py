"""What this installation's finished jobs took: read from their steps, whoever owned them.

Numbers alone leave this module, added up over jobs: nothing tells whose they were.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Float, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.jobs.spec import Started, TrainSpec
from app.jobs.states import JobStatus
from app.tables import Attempt, File, FileReport, Job, JobEvent, Json, Metric

RECENT = 100  # finished jobs that are looked at
STEPS = 200  # of a job, that its pace is read from


@dataclass(frozen=True)
class Ended:
    """A job that one attempt brought to its end."""

    job_id: str
    spec: TrainSpec
    steps: int
    tokens: int
    started: Started
    lasted_s: float


@dataclass(frozen=True)
class Timing:
    """Mean seconds of a job's parts, and the most memory it held; null was not measured."""

    step_s: float | None
    evaluation_s: float | None
    saving_step_s: float | None  # of a step that waited for a checkpoint
    peak_bytes: float | None


async def ended(tx: AsyncSession) -> list[Ended]:
    """Return the last jobs that succeeded at their first attempt, newest first."""
    told = (
        select(JobEvent.data)
        .where(JobEvent.job_id == Job.id, JobEvent.data.has_key("first_step"))
        .order_by(JobEvent.seq)
        .limit(1)
        .scalar_subquery()
    )
    query = (
        select(
            Job.id,
            Job.spec,
            Job.step,
            Job.trained_tokens,
            told,
            Attempt.started_at,
            Attempt.ended_at,
        )
        .join(Attempt, (Attempt.job_id == Job.id) & (Attempt.number == 1))
        .where(Job.status == JobStatus.SUCCEEDED, Job.attempt == 1, Attempt.ended_at.is_not(None))
        .order_by(Job.finished_at.desc())
        .limit(RECENT)
    )
    return [
        _ended(job_id, spec, steps, tokens, started, since, until)
        for job_id, spec, steps, tokens, started, since, until in await tx.execute(query)
        if started is not None and tokens and steps
    ]


async def timings(tx: AsyncSession, jobs: Sequence[Ended]) -> dict[str, Timing]:
    """Return what each job's steps took, from when it told of them.

    A step ends when its loss is told and begins with what was told before: the step, or the
    evaluation after it. What follows a checkpoint waited for it.
    """
    every = Job.spec["training"]["checkpoint_steps"].as_integer()
    told_at = func.extract("epoch", Metric.ts)
    before = func.lag(told_at).over(partition_by=Metric.job_id, order_by=(Metric.ts, Metric.step))
    gaps = (
        select(
            Metric.job_id,
            Metric.name,
            Metric.step,
            ((Metric.step - 1) % every == 0).label("saved"),
            (told_at - before).cast(Float).label("gap"),
        )
        .join(Job, Job.id == Metric.job_id)
        .where(
            Metric.job_id.in_([job.job_id for job in jobs]),
            Metric.name.in_(["train_loss", "valid_loss"]),
            Metric.step <= STEPS,
        )
        .subquery()
    )
    step = (gaps.c.name == "train_loss") & (gaps.c.step > 1)
    mean = func.avg(gaps.c.gap)
    query = select(
        gaps.c.job_id,
        mean.filter(step & ~gaps.c.saved),
        mean.filter(gaps.c.name == "valid_loss"),
        mean.filter(step & gaps.c.saved),
    ).group_by(gaps.c.job_id)
    peaks = await _peaks(tx, jobs)
    return {
        job_id: Timing(step_s, evaluation_s, saving_s, peaks.get(job_id))
        for job_id, step_s, evaluation_s, saving_s in await tx.execute(query)
    }


async def token_reports(tx: AsyncSession, jobs: Sequence[Ended]) -> dict[tuple[str, str], Json]:
    """Return what reports counted, by the sha256 of a file and the base model they counted for."""
    hashes = {sha256 for job in jobs for sha256 in _files(job.spec)}
    bases = {job.spec.base_model for job in jobs}
    query = (
        select(File.sha256, FileReport.model, FileReport.report["tokens"])
        .join(File, File.id == FileReport.file_id)
        .where(File.sha256.in_(hashes), FileReport.model.in_(bases))
    )
    return {
        (sha256, model): tokens
        for sha256, model, tokens in await tx.execute(query)
        if tokens and "lengths" in tokens
    }


async def durations_s(tx: AsyncSession) -> tuple[float, float, float] | None:
    """Return how long finished jobs run, in seconds: an eighth are shorter, half, seven eighths."""
    lasted = func.extract("epoch", Job.finished_at - Job.started_at).cast(Float)
    last = (
        select(lasted.label("lasted"))
        .where(Job.status == JobStatus.SUCCEEDED, Job.started_at.is_not(None))
        .order_by(Job.finished_at.desc())
        .limit(RECENT)
        .subquery()
    )
    shares = func.percentile_cont([0.125, 0.5, 0.875]).within_group(last.c.lasted)
    found: list[float] | None = await tx.scalar(select(shares))
    return (found[0], found[1], found[2]) if found else None


async def _peaks(tx: AsyncSession, jobs: Sequence[Ended]) -> Mapping[str, float]:
    query = (
        select(Metric.job_id, func.max(Metric.value))
        .where(
            Metric.job_id.in_([job.job_id for job in jobs]),
            Metric.name == "memory_bytes",
            Metric.step <= STEPS,
        )
        .group_by(Metric.job_id)
    )
    return dict((await tx.execute(query)).tuples().all())


def _ended(
    job_id: str,
    spec: Json,
    steps: int,
    tokens: int,
    started: Json,
    since: datetime,
    until: datetime,
) -> Ended:
    told: dict[str, Any] = {"at": since.timestamp()} | started
    return Ended(
        job_id=job_id,
        spec=TrainSpec.model_validate(spec),
        steps=steps,
        tokens=tokens,
        started=Started.model_validate(told),
        lasted_s=(until - since).total_seconds(),
    )


def _files(spec: TrainSpec) -> list[str]:
    return [sha256 for sha256 in (spec.data.train_sha256, spec.data.valid_sha256) if sha256]
