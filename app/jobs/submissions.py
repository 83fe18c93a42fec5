"""Requests that made a job, so that one sent again makes no second."""

import hashlib
from dataclasses import dataclass

from sqlalchemy import delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import IdempotencyKeyReused
from app.keys.service import Caller
from app.tables import Submission

REMEMBERED = text("interval '24 hours'")
RETRIED_WITHIN = text("interval '10 minutes'")


@dataclass(frozen=True)
class Request:
    """Who sends what: `idempotency_key` is their name for it, `again` says it is a retry."""

    by: Caller
    body: str
    idempotency_key: str | None
    again: bool

    @property
    def body_sha256(self) -> str:
        return hashlib.sha256(self.body.encode()).hexdigest()


async def made_before(tx: AsyncSession, request: Request) -> str | None:
    """Return the job that this request has made already, if it has.

    The same request waits here while another is making its job.

    Raises:
        IdempotencyKeyReused: its key stands for another body.
    """
    await _wait_for_twins(tx, request)
    if request.idempotency_key is not None:
        return await _of_idempotency_key(tx, request)
    return await _of_retry(tx, request) if request.again else None


async def remember(tx: AsyncSession, request: Request, job_id: str) -> None:
    """Note which job a request made."""
    tx.add(
        Submission(
            job_id=job_id,
            organization_id=request.by.organization_id,
            key_id=request.by.key_id,
            idempotency_key=request.idempotency_key,
            body_sha256=request.body_sha256,
        )
    )
    await tx.flush()


async def forget(tx: AsyncSession, *, limit: int) -> int:
    """Delete some that are older than a day; say how many."""
    old = select(Submission.job_id).where(Submission.created_at < func.now() - REMEMBERED)
    some = old.limit(limit).with_for_update(skip_locked=True)
    held = list(await tx.scalars(some))
    await tx.execute(delete(Submission).where(Submission.job_id.in_(held)))
    return len(held)


async def _wait_for_twins(tx: AsyncSession, request: Request) -> None:
    """Let one request of a kind in at a time; the lock ends with the transaction."""
    twin = (request.by.organization_id, request.idempotency_key or request.by.key_id + request.body)
    digest = hashlib.sha256("\0".join(twin).encode()).digest()
    number = int.from_bytes(digest[:8], signed=True)
    await tx.execute(select(func.pg_advisory_xact_lock(number)))


async def _of_idempotency_key(tx: AsyncSession, request: Request) -> str | None:
    named = (
        Submission.organization_id == request.by.organization_id,
        Submission.idempotency_key == request.idempotency_key,
    )
    too_old = Submission.created_at < func.now() - REMEMBERED
    await tx.execute(delete(Submission).where(*named, too_old))
    found = (await tx.scalars(select(Submission).where(*named))).one_or_none()
    if found is None:
        return None
    if found.body_sha256 != request.body_sha256:
        raise IdempotencyKeyReused(
            f"The Idempotency-Key of this request made {found.job_id} from another body;"
            " use a new key for a new job."
        )
    return found.job_id


async def _of_retry(tx: AsyncSession, request: Request) -> str | None:
    query = select(Submission.job_id).where(
        Submission.organization_id == request.by.organization_id,
        Submission.key_id == request.by.key_id,
        Submission.body_sha256 == request.body_sha256,
        Submission.idempotency_key.is_(None),
        Submission.created_at > func.now() - RETRIED_WITHIN,
    )
    return (await tx.scalars(query.order_by(Submission.created_at.desc()).limit(1))).first()
