"""Removes what is over: expired files, states nobody resumes from, bytes nobody owns."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from sqlalchemy import delete, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app import blobs
from app.db import Database, from_now
from app.files import service as files
from app.jobs import submissions
from app.jobs.states import TERMINAL, JobStatus
from app.previews import service as previews
from app.tables import Job, ResumeState, Worker
from app.uploads import service as uploads
from app.webhooks import outbox

ROWS_PER_TRANSACTION = 100
WORKER_FORGOTTEN_DAYS = 1


@dataclass(frozen=True)
class Swept:
    """How many of each are gone."""

    files: int
    resume_states: int
    blobs: int
    workers: int
    uploads: int = 0


async def sweep_storage(
    db: Database, *, file_retention_days: int | None, resume_retention_days: int
) -> Swept:
    """Delete what nobody needs, in small transactions. Harmless when several do it at once."""
    deleted_files = await _expired_files(db, file_retention_days)
    stale = partial(_delete_resume_states, retention_days=resume_retention_days)
    states = await _repeat(db, stale)
    async with db.transaction() as tx:
        workers = await _forget_workers(tx)
    expired = await _repeat(db, partial(uploads.expire, limit=ROWS_PER_TRANSACTION))
    await _repeat(db, partial(submissions.forget, limit=ROWS_PER_TRANSACTION))
    await _repeat(db, partial(outbox.forget, limit=ROWS_PER_TRANSACTION))
    await _repeat(db, partial(previews.forget, limit=ROWS_PER_TRANSACTION))
    return Swept(
        files=deleted_files,
        resume_states=states,
        blobs=await blobs.purge(db),
        workers=workers,
        uploads=expired,
    )


async def _expired_files(db: Database, retention_days: int | None) -> int:
    total = 0
    deleted: int | None = 0
    while deleted is not None:
        total += deleted
        async with db.transaction() as tx:
            deleted = await files.delete_expired(
                tx, retention_days=retention_days, limit=ROWS_PER_TRANSACTION
            )
    return total


async def _repeat(db: Database, some: Callable[[AsyncSession], Awaitable[int]]) -> int:
    """Do a small piece of work again, in a transaction each, until nothing is left; count it."""
    total, done = 0, 1
    while done:
        async with db.transaction() as tx:
            done = await some(tx)
        total += done
    return total


async def _delete_resume_states(tx: AsyncSession, retention_days: int) -> int:
    """Delete some states of jobs that are over, or that were paused for too long.

    The job is locked with them: a paused one is not resumed from what is being deleted.
    """
    stale = ResumeState.created_at < from_now(days=-retention_days)
    over = Job.status.in_(TERMINAL) | ((Job.status == JobStatus.PAUSED) & stale)
    some = (
        select(ResumeState.job_id, ResumeState.step)
        .join(Job, Job.id == ResumeState.job_id)
        .where(over)
        .limit(ROWS_PER_TRANSACTION)
        .with_for_update(skip_locked=True)
    )
    held = [tuple(row) for row in await tx.execute(some)]
    if not held:
        return 0
    key = tuple_(ResumeState.job_id, ResumeState.step)
    gone = delete(ResumeState).where(key.in_(held)).returning(ResumeState.blob_id)
    blob_ids = list(await tx.scalars(gone))
    await blobs.discard(tx, *blob_ids)
    return len(blob_ids)


async def _forget_workers(tx: AsyncSession) -> int:
    silent = Worker.seen_at < from_now(days=-WORKER_FORGOTTEN_DAYS)
    return len(list(await tx.scalars(delete(Worker).where(silent).returning(Worker.id))))
