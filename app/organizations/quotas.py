"""What an organization may use, and how much of it is used; a limit that is null is none."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import QuotaExceeded
from app.jobs.states import JobStatus
from app.organizations import service as organizations
from app.organizations import usage

GIB = 1 << 30
HOUR_S = 3600
AGAIN_S = 60  # when a job may have started, or a file may have been deleted


@dataclass(frozen=True)
class Used:
    """How much of each limit is used now; the GPU-seconds of the month begin anew at its end."""

    running: int
    queued: int
    gpu_seconds: float
    stored_bytes: int
    resets_at: datetime


async def used(tx: AsyncSession, organization_id: str) -> Used:
    """Return what an organization uses of all that can be limited."""
    month = await usage.this_month(tx)
    return Used(
        running=await usage.jobs_in(tx, organization_id, JobStatus.RUNNING),
        queued=await usage.jobs_in(tx, organization_id, JobStatus.QUEUED),
        gpu_seconds=await usage.gpu_seconds(tx, organization_id, month),
        stored_bytes=await usage.stored_bytes(tx, organization_id),
        resets_at=month.end,
    )


async def check_submit(tx: AsyncSession, organization_id: str) -> None:
    """Let one more job wait. What runs or waits already goes on, whatever it will use.

    Raises:
        QuotaExceeded: too many wait, or the GPU-hours of the month are used up.
    """
    limits = await organizations.get(tx, organization_id)
    if limits.max_queued is not None:
        await _one_at_a_time(tx, organization_id)
        waiting = await usage.jobs_in(tx, organization_id, JobStatus.QUEUED)
        if waiting >= limits.max_queued:
            raise QuotaExceeded(
                f"{waiting} jobs of your organization wait, and at most {limits.max_queued} may:"
                " submit this one when another has started, or cancel one.",
                retry_after_s=AGAIN_S,
            )
    if limits.gpu_seconds_per_month is not None:
        month = await usage.this_month(tx)
        spent_s = await usage.gpu_seconds(tx, organization_id, month)
        if spent_s >= limits.gpu_seconds_per_month:
            raise QuotaExceeded(
                f"Your organization has used {spent_s / HOUR_S:.2f} GPU-hours of the"
                f" {limits.gpu_seconds_per_month / HOUR_S:.2f} it may in {month}; the next month"
                f" begins {month.end:%Y-%m-%d %H:%M} UTC. What runs or waits already goes on.",
                retry_after_s=month.seconds_left(),
            )


async def check_stored(tx: AsyncSession, organization_id: str, *, more_bytes: int) -> None:
    """Let so many more bytes be uploaded.

    Raises:
        QuotaExceeded: the organization has no room for them.
    """
    most = (await organizations.get(tx, organization_id)).max_stored_bytes
    if most is None:
        return
    await _one_at_a_time(tx, organization_id)
    kept = await usage.stored_bytes(tx, organization_id)
    if kept + more_bytes > most or kept >= most:
        raise QuotaExceeded(
            f"Your organization keeps {kept / GIB:.3f} GiB of the {most / GIB:.3f} GiB it may, and"
            " this does not fit beside it: delete files first.",
            param="file",
            retry_after_s=AGAIN_S,
        )


async def _one_at_a_time(tx: AsyncSession, organization_id: str) -> None:
    """Have what counts and then adds wait for its like until this transaction ends."""
    await tx.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(organization_id, 0))))
