"""Messages that wait to be sent: each is written in the transaction of what it tells of."""

import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import from_now
from app.ids import new_id
from app.jobs.states import JobStatus
from app.tables import WebhookAttempt, WebhookDelivery, WebhookEndpoint

EVENT_TYPES = {
    JobStatus.SUCCEEDED: "fine_tuning.job.succeeded",
    JobStatus.FAILED: "fine_tuning.job.failed",
    JobStatus.CANCELLED: "fine_tuning.job.cancelled",
}
TRIED_FOR_S = 24 * 3600
HELD_S = 60  # by who sends it; longer than a try may take
KEPT_DAYS = 30  # in the log, once it is over
GONE = 410
PENDING, DELIVERED, GIVEN_UP = "pending", "delivered", "given_up"


@dataclass(frozen=True)
class Due:
    """A message to send now, by whoever claimed this attempt at it; its secrets are sealed."""

    id: str
    endpoint_id: str
    organization_id: str
    attempt: int
    url: str
    body: str
    secrets: tuple[bytes, ...]


@dataclass(frozen=True)
class Result:
    """How a try went: an answer, or the error that there was none."""

    duration_ms: int
    status_code: int | None = None
    error: str | None = None
    response: str | None = None

    @property
    def taken(self) -> bool:
        return self.status_code is not None and 200 <= self.status_code < 300


async def tell(tx: AsyncSession, organization_id: str, job_id: str, status: JobStatus) -> None:
    """Write a message to each endpoint that wants to know how a job ended."""
    event_type = EVENT_TYPES[status]
    wanting = select(WebhookEndpoint.id).where(
        WebhookEndpoint.organization_id == organization_id,
        WebhookEndpoint.event_types.contains([event_type]),
        WebhookEndpoint.disabled_at.is_(None),
    )
    # Held, so that deleting one at this moment cannot fail the job's last transaction.
    endpoints = list(await tx.scalars(wanting.with_for_update(read=True, key_share=True)))
    event_id, body = event(event_type, job_id)
    for endpoint_id in endpoints:
        tx.add(
            WebhookDelivery(
                id=new_id("msg_"),
                endpoint_id=endpoint_id,
                organization_id=organization_id,
                event_id=event_id,
                event_type=event_type,
                body=body,
                gives_up_at=from_now(seconds=TRIED_FOR_S),
            )
        )
    await tx.flush()


async def add_test(tx: AsyncSession, endpoint: WebhookEndpoint, event_type: str) -> Due:
    """Write a message about no job, and take the only attempt at it."""
    event_id, body = event(event_type, "ftjob-test")
    delivery = WebhookDelivery(
        id=new_id("msg_"),
        endpoint_id=endpoint.id,
        organization_id=endpoint.organization_id,
        event_id=event_id,
        event_type=event_type,
        body=body,
        attempts=1,
        next_at=from_now(seconds=HELD_S),
        gives_up_at=func.now(),
    )
    tx.add(delivery)
    await tx.flush()
    secrets = await _secrets(tx, endpoint.id)
    return Due(delivery.id, endpoint.id, endpoint.organization_id, 1, endpoint.url, body, secrets)


def event(event_type: str, job_id: str) -> tuple[str, str]:
    """Return an id and OpenAI's webhook event, as the bytes that are signed."""
    event_id = new_id("evt_")
    told = {
        "id": event_id,
        "object": "event",
        "created_at": int(time.time()),
        "type": event_type,
        "data": {"id": job_id},
    }
    return event_id, json.dumps(told, separators=(",", ":"))


async def claim(tx: AsyncSession, *, passing_over: Collection[str] = ()) -> Due | None:
    """Take the message that is due the longest; two senders never take the same.

    `passing_over` are organizations that have enough in flight.
    """
    due = (
        select(WebhookDelivery.id)
        .where(
            WebhookDelivery.state == PENDING,
            WebhookDelivery.next_at <= func.now(),
            WebhookDelivery.organization_id.not_in(passing_over),
        )
        .order_by(WebhookDelivery.next_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    taken = await tx.scalar(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == due.scalar_subquery(), WebhookDelivery.state == PENDING)
        .values(attempts=WebhookDelivery.attempts + 1, next_at=from_now(seconds=HELD_S))
        .returning(WebhookDelivery)
    )
    if taken is None:
        return None
    endpoint = await tx.get_one(WebhookEndpoint, taken.endpoint_id)
    return Due(
        id=taken.id,
        endpoint_id=taken.endpoint_id,
        organization_id=taken.organization_id,
        attempt=taken.attempts,
        url=endpoint.url,
        body=taken.body,
        secrets=await _secrets(tx, endpoint.id),
    )


async def settle(tx: AsyncSession, due: Due, result: Result, *, wait_s: float) -> str | None:
    """Write down how an attempt went, and return what became of the message.

    It is tried again in `wait_s` unless its time is over. None: another attempt is under way, or
    the message was given up meanwhile.
    """
    over = from_now(seconds=wait_s) >= WebhookDelivery.gives_up_at
    state: Any = case((over, GIVEN_UP), else_=PENDING)
    if result.taken:
        state = DELIVERED
    elif result.status_code == GONE:
        state = GIVEN_UP
    settled = await tx.execute(
        update(WebhookDelivery)
        .where(
            WebhookDelivery.id == due.id,
            WebhookDelivery.attempts == due.attempt,
            WebhookDelivery.state == PENDING,
        )
        .values(state=state, next_at=from_now(seconds=wait_s))
        .returning(WebhookDelivery.state)
    )
    became: str | None = settled.scalar()
    if became is None:
        return None
    tx.add(
        WebhookAttempt(
            delivery_id=due.id,
            number=due.attempt,
            duration_ms=result.duration_ms,
            status_code=result.status_code,
            error=result.error,
            response=result.response,
        )
    )
    if result.status_code == GONE:
        await disable(tx, due.endpoint_id, "It answered 410 Gone.")
    await tx.flush()
    return became


async def disable(tx: AsyncSession, endpoint_id: str, why: str) -> None:
    """Send an endpoint nothing any more, what waits included."""
    await tx.execute(
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.disabled_at.is_(None))
        .values(disabled_at=func.now(), disabled_reason=why)
    )
    waiting = (WebhookDelivery.endpoint_id == endpoint_id) & (WebhookDelivery.state == PENDING)
    await tx.execute(update(WebhookDelivery).where(waiting).values(state=GIVEN_UP))


async def forget(tx: AsyncSession, *, limit: int) -> int:
    """Delete some messages that were over a while ago, from the log too; say how many."""
    long_ago = WebhookDelivery.created_at < from_now(days=-KEPT_DAYS)
    some = select(WebhookDelivery.id).where(WebhookDelivery.state != PENDING, long_ago)
    held = list(await tx.scalars(some.limit(limit).with_for_update(skip_locked=True)))
    await tx.execute(delete(WebhookDelivery).where(WebhookDelivery.id.in_(held)))
    return len(held)


async def _secrets(tx: AsyncSession, endpoint_id: str) -> tuple[bytes, ...]:
    """Return what is signed with: the secret, and the one before while it is good."""
    in_grace = or_(
        WebhookEndpoint.previous_until.is_(None), WebhookEndpoint.previous_until > func.now()
    )
    query = select(WebhookEndpoint.secret, case((in_grace, WebhookEndpoint.previous_secret))).where(
        WebhookEndpoint.id == endpoint_id
    )
    return tuple(secret for secret in (await tx.execute(query)).one() if secret is not None)
