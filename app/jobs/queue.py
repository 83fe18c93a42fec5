"""Who is next: priority, then tenants in turn, then age; large jobs are not passed for ever.

A tenant that runs as many jobs as it may is passed over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    CTE,
    Select,
    Subquery,
    Text,
    bindparam,
    func,
    literal,
    or_,
    select,
    text,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.jobs.states import JobStatus
from app.tables import Job, Organization

PATIENCE_S = 600
GPUS = Job.spec["resources"]["gpus"].as_integer()
READY = Job.retry_at.is_(None) | (Job.retry_at <= func.now())
_LONG_AGO = func.now() - text(f"interval '{PATIENCE_S} seconds'")
_NOBODY = 1 << 62
NEWCOMER = ""


@dataclass(frozen=True)
class Place:
    """Where a job stands, 1 for the next; `full`: its tenant runs as many jobs as it may."""

    number: int
    full: bool


@dataclass(frozen=True)
class Newcomer:
    """A job that might be submitted now."""

    organization_id: str
    priority: int
    gpus: int


def line(newcomer: Newcomer | None = None) -> CTE:
    """Return the queue: id, gpus, queued_at and place (1 is next) of every job that waits.

    The id of a newcomer, who is taken to wait already, is empty.

    A job's turn is the number of devices its tenant would hold if all its jobs up to this one ran:
    a tenant with a hundred jobs gets no more than one with two, while both wait. Tenants that are
    full stand last, as long as they are.
    """
    running = (
        select(
            Job.organization_id,
            func.sum(GPUS).label("devices"),
            func.count().label("jobs"),
        )
        .where(Job.status == JobStatus.RUNNING)
        .group_by(Job.organization_id)
        .subquery()
    )
    waiting = _waiting(newcomer)
    own_order = (waiting.c.priority.desc(), waiting.c.created_at, waiting.c.id)
    asked = func.sum(waiting.c.gpus).over(
        partition_by=waiting.c.organization_id, order_by=own_order, rows=(None, 0)
    )
    most = Organization.max_running
    full = func.coalesce(func.coalesce(running.c.jobs, 0) >= most, False)
    turns = (
        select(
            waiting.c.id,
            most.is_not(None).label("limited"),
            full.label("full"),
            waiting.c.priority,
            waiting.c.created_at,
            waiting.c.queued_at,
            waiting.c.gpus,
            (func.coalesce(running.c.devices, 0) + asked).label("turn"),
        )
        .join(Organization, Organization.id == waiting.c.organization_id)
        .outerjoin(running, running.c.organization_id == waiting.c.organization_id)
        .subquery()
    )
    order = (turns.c.full, turns.c.priority.desc(), turns.c.turn, turns.c.created_at, turns.c.id)
    place = func.row_number().over(order_by=order).label("place")
    columns = turns.c.id, turns.c.gpus, turns.c.queued_at, turns.c.limited, turns.c.full
    return select(*columns, place).cte("line")


def _waiting(newcomer: Newcomer | None) -> Subquery:
    """Select who waits, with the newcomer if there is one."""
    jobs = select(
        Job.id,
        Job.organization_id,
        Job.priority,
        Job.created_at,
        Job.queued_at,
        GPUS.label("gpus"),
    ).where(Job.status == JobStatus.QUEUED)
    if newcomer is None:
        return jobs.subquery()
    one_more = select(
        literal(NEWCOMER),
        literal(newcomer.organization_id),
        literal(newcomer.priority),
        func.now(),
        func.now(),
        literal(newcomer.gpus),
    )
    return union_all(jobs, one_more).subquery()


async def hold_limited(tx: AsyncSession) -> list[str]:
    """Lock the tenants that may run so many jobs only, and return those that we got.

    What they run is counted in a statement after this one: two claims at once would both count
    before either has taken a job, and go over the limit. The other claim's tenants are left to it.
    """
    limited = select(Organization.id).where(Organization.max_running.is_not(None))
    return list(await tx.scalars(limited.with_for_update(key_share=True, skip_locked=True)))


def best(*, free: int, total: int, held: Sequence[str]) -> Select[Any]:
    """Select the first job of the line that `free` devices can hold, and lock it.

    Of tenants with a limit, only those that are `held` are served.

    A smaller job may pass a larger one that waits for devices, but not one that this worker could
    hold with all its `total` devices and that has waited longer than PATIENCE_S: for it they are
    left to come free.
    """
    queue = line()
    waits_long = (
        select(func.min(queue.c.place))
        .where(
            queue.c.gpus > free,
            queue.c.gpus <= total,
            queue.c.queued_at < _LONG_AGO,
            ~queue.c.full,
        )
        .scalar_subquery()
    )
    return (
        select(Job.id)
        .join(queue, queue.c.id == Job.id)
        .where(
            Job.status == JobStatus.QUEUED,
            READY,
            ~queue.c.full,
            or_(~queue.c.limited, Job.organization_id.in_(held)),
            queue.c.gpus <= free,
            queue.c.place < func.coalesce(waits_long, _NOBODY),
        )
        .order_by(queue.c.place)
        .limit(1)
        .with_for_update(of=Job, skip_locked=True)
    )


async def places(tx: AsyncSession | AsyncConnection, job_ids: Sequence[str]) -> dict[str, Place]:
    """Return the places of those of some jobs that wait, by their ids."""
    return await _places_in(tx, _PLACES, job_ids)


async def place_of(tx: AsyncSession, newcomer: Newcomer) -> Place:
    """Return where a job would stand that is submitted now."""
    found = await _places_in(tx, _places(line(newcomer)), [NEWCOMER])
    return found[NEWCOMER]


def _places(queue: CTE) -> Select[Any]:
    """Select the places of `job_ids` in a queue."""
    asked = bindparam("job_ids", type_=ARRAY(Text))
    return select(queue.c.id, queue.c.place, queue.c.full).where(queue.c.id == func.any(asked))


async def _places_in(
    tx: AsyncSession | AsyncConnection, places: Select[Any], job_ids: Sequence[str]
) -> dict[str, Place]:
    found = await tx.execute(places, {"job_ids": list(job_ids)})
    return {job_id: Place(number, full) for job_id, number, full in found}


async def first_waiting(tx: AsyncSession) -> str | None:
    """Return the id of a job that waits and may start, if any does."""
    query = select(Job.id).where(Job.status == JobStatus.QUEUED, READY).limit(1)
    return (await tx.scalars(query)).first()


_PLACES = _places(line())  # asked at each look at a job that waits, hence made once
