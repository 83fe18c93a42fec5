"""Endpoints of webhooks: who is told of a job's end, and what became of each message."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app import audit
from app.audit import Actor
from app.db import from_now
from app.errors import InvalidRequest, NotFound
from app.ids import new_id
from app.paging import Page, cut
from app.tables import Organization, WebhookAttempt, WebhookDelivery, WebhookEndpoint
from app.vault import Vault
from app.webhooks import outbox, signing
from app.webhooks.outbox import Due

MOST_ENDPOINTS = 20
GRACE_HOURS = 24


@dataclass(frozen=True)
class Made:
    """An endpoint and, this once, its secret in the clear."""

    endpoint: WebhookEndpoint
    secret: str


@dataclass(frozen=True)
class Logged:
    """A message and the tries at it, the first one first."""

    delivery: WebhookDelivery
    attempts: list[WebhookAttempt]


async def create(
    tx: AsyncSession, by: Actor, *, name: str, url: str, event_types: Sequence[str], vault: Vault
) -> Made:
    """Add an endpoint; its URL was checked before.

    Raises:
        InvalidRequest: the organization has as many as it may.
    """
    own = WebhookEndpoint.organization_id == by.organization_id
    if (await tx.execute(select(func.count()).where(own))).scalar_one() >= MOST_ENDPOINTS:
        raise InvalidRequest(f"There are {MOST_ENDPOINTS} webhook endpoints; delete one first.")
    secret = signing.new_secret()
    endpoint = WebhookEndpoint(
        id=new_id("wh_"),
        organization_id=by.organization_id,
        name=name,
        url=url,
        event_types=list(dict.fromkeys(event_types)),
        secret=vault.seal(secret),
        secret_hint=signing.hint(secret),
    )
    tx.add(endpoint)
    audit.record(tx, by, "webhook.created", endpoint.id, {"url": url})
    await tx.flush()
    await tx.refresh(endpoint)
    return Made(endpoint, secret)


async def change(
    tx: AsyncSession, endpoint: WebhookEndpoint, by: Actor, asked: dict[str, Any]
) -> None:
    """Change name, url or event_types; `enabled` stops and starts what is sent.

    What waits when it is stopped is given up; what happens meanwhile is never told.
    """
    enabled = asked.pop("enabled", None)
    audit.record(tx, by, "webhook.changed", endpoint.id, {"changed": sorted(asked)})
    changed = {name: value for name, value in asked.items() if getattr(endpoint, name) != value}
    if changed:
        for name, value in changed.items():
            setattr(endpoint, name, value)
        endpoint.updated_at = func.now()
    if enabled:
        endpoint.disabled_at = endpoint.disabled_reason = None
    await tx.flush()
    if enabled is False:
        await outbox.disable(tx, endpoint.id, "It was disabled by its owner.")
    await tx.refresh(endpoint)


async def rotate(
    tx: AsyncSession, endpoint: WebhookEndpoint, by: Actor, *, keep_old: bool, vault: Vault
) -> Made:
    """Sign with a new secret from now on, and for a day with the old one too if that is asked."""
    secret = signing.new_secret()
    endpoint.previous_secret = endpoint.secret if keep_old else None
    endpoint.previous_until = from_now(minutes=GRACE_HOURS * 60) if keep_old else None
    endpoint.secret, endpoint.secret_hint = vault.seal(secret), signing.hint(secret)
    endpoint.updated_at = func.now()
    audit.record(tx, by, "webhook.rotated", endpoint.id, {"old_for_24_hours": keep_old})
    await tx.flush()
    await tx.refresh(endpoint)
    return Made(endpoint, secret)


async def delete(tx: AsyncSession, endpoint: WebhookEndpoint, by: Actor) -> None:
    """Forget an endpoint, with what waits for it and its log."""
    audit.record(tx, by, "webhook.deleted", endpoint.id, {"url": endpoint.url})
    await tx.delete(endpoint)
    await tx.flush()


async def begin_test(
    tx: AsyncSession, endpoint: WebhookEndpoint, by: Actor, event_type: str
) -> Due:
    """Write a message about no job, which is sent once."""
    audit.record(tx, by, "webhook.tested", endpoint.id)
    return await outbox.add_test(tx, endpoint, event_type)


async def get(
    tx: AsyncSession, endpoint_id: str, *, organization_id: str | None = None, hold: bool = False
) -> WebhookEndpoint:
    """Return an endpoint, of one organization or for the operator of any.

    Raises:
        NotFound: no such endpoint, or another tenant's.
    """
    query = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id)
    if organization_id is not None:
        query = query.where(WebhookEndpoint.organization_id == organization_id)
    if hold:
        query = query.with_for_update()
    found = (await tx.execute(query)).scalar_one_or_none()
    if found is None:
        raise NotFound(f"No webhook endpoint {endpoint_id}.", param="webhook_endpoint_id")
    return found


async def list_endpoints(
    tx: AsyncSession, organization_id: str, *, after: str | None, limit: int
) -> Page[WebhookEndpoint]:
    """Return a page of an organization's endpoints, newest first."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.organization_id == organization_id)
    if after:
        last = await get(tx, after, organization_id=organization_id)
        key = tuple_(WebhookEndpoint.created_at, WebhookEndpoint.id)
        query = query.where(key < tuple_(last.created_at, last.id))
    query = query.order_by(WebhookEndpoint.created_at.desc(), WebhookEndpoint.id.desc())
    return cut(list(await tx.scalars(query.limit(limit + 1))), limit)


async def list_all(tx: AsyncSession) -> list[tuple[WebhookEndpoint, str]]:
    """Return every endpoint with its organization's name, oldest first."""
    query = select(WebhookEndpoint, Organization.name).join(
        Organization, Organization.id == WebhookEndpoint.organization_id
    )
    rows = await tx.execute(query.order_by(WebhookEndpoint.created_at, WebhookEndpoint.id))
    return [(endpoint, name) for endpoint, name in rows]


async def list_deliveries(
    tx: AsyncSession, endpoint: WebhookEndpoint, *, after: str | None, limit: int
) -> Page[Logged]:
    """Return a page of an endpoint's messages, newest first, with every try at them."""
    own = WebhookDelivery.endpoint_id == endpoint.id
    query = select(WebhookDelivery).where(own)
    if after:
        seq = select(WebhookDelivery.seq).where(own, WebhookDelivery.id == after)
        query = query.where(WebhookDelivery.seq < seq.scalar_subquery())
    rows = await tx.scalars(query.order_by(WebhookDelivery.seq.desc()).limit(limit + 1))
    page = cut(list(rows), limit)
    tries: dict[str, list[WebhookAttempt]] = {delivery.id: [] for delivery in page.data}
    made = select(WebhookAttempt).where(WebhookAttempt.delivery_id.in_(tries))
    for attempt in await tx.scalars(made.order_by(WebhookAttempt.number)):
        tries[attempt.delivery_id].append(attempt)
    logged = [Logged(delivery, tries[delivery.id]) for delivery in page.data]
    return Page(logged, has_more=page.has_more)


async def reseal(tx: AsyncSession, vault: Vault) -> int:
    """Seal every secret with the first of the server's keys; say how many endpoints there are.

    Raises:
        SealBroken: one was sealed with a key that is not among them.
    """
    endpoints = list(await tx.scalars(select(WebhookEndpoint).with_for_update()))
    for each in endpoints:
        each.secret = vault.reseal(each.secret)
        if each.previous_secret is not None:
            each.previous_secret = vault.reseal(each.previous_secret)
    await tx.flush()
    return len(endpoints)
