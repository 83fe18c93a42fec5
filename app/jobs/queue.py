"""Who is next: priority, then tenants in turn, then age; large jobs are not passed for ever."""

from typing import Any

from sqlalchemy import CTE, Select, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.jobs.states import JobStatus
from app.tables import Job

PATIENCE_S = 600
GPUS = Job.spec["resources"]["gpus"].as_integer()
READY = Job.retry_at.is_(None) | (Job.retry_at <= func.now())
_LONG_AGO = func.now() - text(f"interval '{PATIENCE_S} seconds'")
_NOBODY = 1 << 62


def line() -> CTE:
    """Return the queue: id, gpus, queued_at and place (1 is next) of every job that waits.

    A job's turn is the number of devices its tenant would hold if all its jobs up to this one ran:
    a tenant with a hundred jobs gets no more than one with two, while both wait.
    """
    running = (
        select(Job.organization_id, func.sum(GPUS).label("devices"))
        .where(Job.status == JobStatus.RUNNING)
        .group_by(Job.organization_id)
        .subquery()
    )
    own_order = (Job.priority.desc(), Job.created_at, Job.id)
    asked = func.sum(GPUS).over(
        partition_by=Job.organization_id, order_by=own_order, rows=(None, 0)
    )
    turns = (
        select(
            Job.id,
            Job.priority,
            Job.created_at,
            Job.queued_at,
            GPUS.label("gpus"),
            (func.coalesce(running.c.devices, 0) + asked).label("turn"),
        )
        .outerjoin(running, running.c.organization_id == Job.organization_id)
        .where(Job.status == JobStatus.QUEUED)
        .subquery()
    )
    order = (turns.c.priority.desc(), turns.c.turn, turns.c.created_at, turns.c.id)
    place = func.row_number().over(order_by=order).label("place")
    return select(turns.c.id, turns.c.gpus, turns.c.queued_at, place).cte("line")


def best(*, free: int, total: int) -> Select[Any]:
    """Select the first job of the line that `free` devices can hold, and lock it.

    A smaller job may pass a larger one that waits for devices, but not one that this worker could
    hold with all its `total` devices and that has waited longer than PATIENCE_S: for it they are
    left to come free.
    """
    queue = line()
    waits_long = (
        select(func.min(queue.c.place))
        .where(queue.c.gpus > free, queue.c.gpus <= total, queue.c.queued_at < _LONG_AGO)
        .scalar_subquery()
    )
    return (
        select(Job.id)
        .join(queue, queue.c.id == Job.id)
        .where(
            Job.status == JobStatus.QUEUED,
            READY,
            queue.c.gpus <= free,
            queue.c.place < func.coalesce(waits_long, _NOBODY),
        )
        .order_by(queue.c.place)
        .limit(1)
        .with_for_update(of=Job, skip_locked=True)
    )


async def place(tx: AsyncSession, job_id: str) -> int | None:
    """Return a job's place in the line, 1 for the next; None when it does not wait."""
    queue = line()
    found = await tx.execute(select(queue.c.place).where(queue.c.id == job_id))
    return found.scalar_one_or_none()


async def first_waiting(tx: AsyncSession) -> str | None:
    """Return the id of a job that waits and may start, if any does."""
    query = select(Job.id).where(Job.status == JobStatus.QUEUED, READY).limit(1)
    return (await tx.scalars(query)).first()
