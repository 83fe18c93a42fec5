"""What an organization used: counted from the rows, so there is no meter to drift."""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import InvalidRequest
from app.jobs.queue import GPUS
from app.jobs.states import JobStatus
from app.tables import Attempt, Blob, Job

MONTH = r"(20\d\d)-(0[1-9]|1[0-2])"


@dataclass(frozen=True)
class Month:
    """A calendar month of UTC, from `start` up to `end`."""

    start: datetime

    @classmethod
    def of(cls, moment: datetime) -> "Month":
        """Return the month that a moment lies in."""
        there = moment.astimezone(UTC)
        return cls(datetime(there.year, there.month, 1, tzinfo=UTC))

    @classmethod
    def named(cls, name: str) -> "Month":
        """Return the month of a name such as 2026-11.

        Raises:
            InvalidRequest: it names none.
        """
        found = re.fullmatch(MONTH, name)
        if found is None:
            raise InvalidRequest(f"{name!r} is no month; write it as 2026-11.", param="month")
        return cls(datetime(int(found[1]), int(found[2]), 1, tzinfo=UTC))

    @property
    def end(self) -> datetime:
        return self.start.replace(
            year=self.start.year + self.start.month // 12, month=self.start.month % 12 + 1
        )

    def seconds_left(self) -> int:
        """Return how long it is until the month ends; 1 at least."""
        return max(math.ceil((self.end - datetime.now(UTC)).total_seconds()), 1)

    def __str__(self) -> str:
        return f"{self.start:%Y-%m}"


@dataclass(frozen=True)
class Report:
    """What an organization used in a month; `stored_bytes` are those of now."""

    month: Month
    jobs: dict[str, int]
    gpu_seconds: float
    trained_tokens: int
    stored_bytes: int


async def report(tx: AsyncSession, organization_id: str, month: Month | None) -> Report:
    """Return the report of a month, or of this one.

    Jobs are those submitted in it, by the status they have now; tokens are those of jobs that ended
    in it.
    """
    month = month or await this_month(tx)
    return Report(
        month=month,
        jobs=await _submitted(tx, organization_id, month),
        gpu_seconds=await gpu_seconds(tx, organization_id, month),
        trained_tokens=await _trained_tokens(tx, organization_id, month),
        stored_bytes=await stored_bytes(tx, organization_id),
    )


async def this_month(tx: AsyncSession) -> Month:
    """Return the month that the database's clock is in."""
    return Month.of((await tx.execute(select(func.now()))).scalar_one())


async def gpu_seconds(tx: AsyncSession, organization_id: str, month: Month) -> float:
    """Return for how long devices were held in a month: seconds of each attempt times its devices.

    Lost attempts count until their worker was last heard of, running ones until now. A slot of a
    CPU worker is a device too.
    """
    until = func.least(func.coalesce(Attempt.ended_at, func.now()), month.end)
    since = func.greatest(Attempt.started_at, month.start)
    lasted_s = func.greatest(func.extract("epoch", until - since), 0)
    query = (
        select(func.coalesce(func.sum(lasted_s * GPUS), 0))
        .select_from(Attempt)
        .join(Job, Job.id == Attempt.job_id)
        .where(
            Job.organization_id == organization_id,
            Attempt.started_at < month.end,
            or_(Attempt.ended_at.is_(None), Attempt.ended_at > month.start),
        )
    )
    return float((await tx.execute(query)).scalar_one())


async def stored_bytes(tx: AsyncSession, organization_id: str) -> int:
    """Return how many bytes are kept now: files, adapters, checkpoints and resume states."""
    query = select(func.coalesce(func.sum(Blob.size), 0)).where(
        Blob.organization_id == organization_id, Blob.state == "ready"
    )
    return int((await tx.execute(query)).scalar_one() or 0)


async def jobs_in(tx: AsyncSession, organization_id: str, *statuses: str) -> int:
    """Return how many jobs are in one of these states now."""
    query = select(func.count(Job.id)).where(
        Job.organization_id == organization_id, Job.status.in_(statuses)
    )
    return (await tx.execute(query)).scalar_one()


async def _submitted(tx: AsyncSession, organization_id: str, month: Month) -> dict[str, int]:
    query = select(Job.status, func.count(Job.id)).where(
        Job.organization_id == organization_id,
        Job.created_at >= month.start,
        Job.created_at < month.end,
    )
    rows = await tx.execute(query.group_by(Job.status))
    found = {row[0]: row[1] for row in rows}
    return {status: found.get(status, 0) for status in JobStatus}


async def _trained_tokens(tx: AsyncSession, organization_id: str, month: Month) -> int:
    query = select(func.coalesce(func.sum(Job.trained_tokens), 0)).where(
        Job.organization_id == organization_id,
        Job.finished_at >= month.start,
        Job.finished_at < month.end,
    )
    return int((await tx.execute(query)).scalar_one() or 0)
