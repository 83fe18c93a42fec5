"""Counts what there is in the database, for who watches over the service."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.jobs.states import JobStatus
from app.tables import Attempt, Blob, Job
from app.workers import service as workers
from app.workers.service import Node


@dataclass(frozen=True)
class Census:
    """How many of each; `oldest_s` is for how long the job waits that has waited longest."""

    jobs: dict[str, int]
    failures: dict[str, int]
    attempts: dict[str, int]
    oldest_s: float
    blobs: dict[str, tuple[int, int]]  # by state: how many, and their bytes
    workers: Sequence[Node]


async def take(tx: AsyncSession) -> Census:
    """Count everything by indexes alone."""
    jobs, failures = await _jobs(tx)
    return Census(
        jobs=jobs,
        failures=failures,
        attempts=await _attempts(tx),
        oldest_s=await _oldest_s(tx),
        blobs=await _blobs(tx),
        workers=await workers.alive(tx),
    )


async def _jobs(tx: AsyncSession) -> tuple[dict[str, int], dict[str, int]]:
    """Return jobs by status, and those that failed by the code of their error."""
    query = select(Job.status, Job.error_code, func.count()).group_by(Job.status, Job.error_code)
    jobs: dict[str, int] = dict.fromkeys(JobStatus, 0)
    failures: dict[str, int] = {}
    for status, code, count in await tx.execute(query):
        jobs[status] = jobs.get(status, 0) + count
        if status == JobStatus.FAILED:
            failures[code or "unknown"] = count
    return jobs, failures


async def _attempts(tx: AsyncSession) -> dict[str, int]:
    """Return the attempts that are over, by how they ended."""
    query = select(Attempt.outcome, func.count()).where(Attempt.outcome.is_not(None))
    return {str(row[0]): row[1] for row in await tx.execute(query.group_by(Attempt.outcome))}


async def _oldest_s(tx: AsyncSession) -> float:
    waited_s = func.extract("epoch", func.now() - func.min(Job.queued_at))
    query = select(func.coalesce(waited_s, 0)).where(Job.status == JobStatus.QUEUED)
    return float((await tx.execute(query)).scalar_one())


async def _blobs(tx: AsyncSession) -> dict[str, tuple[int, int]]:
    total = func.coalesce(func.sum(Blob.size), 0)
    query = select(Blob.state, func.count(), total).group_by(Blob.state)
    return {state: (count, int(size or 0)) for state, count, size in await tx.execute(query)}
