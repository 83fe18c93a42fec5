"""Who changed what: written in the transaction of the change, neither without the other."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.ids import new_id
from app.paging import Page, cut
from app.tables import AuditEvent, Json, Organization


@dataclass(frozen=True)
class Actor:
    """Who acts for an organization, and from where; without a key it is the operator."""

    organization_id: str
    key_id: str | None = None
    ip: str | None = None
    request_id: str | None = None

    def within(self, organization_id: str) -> "Actor":
        """Return the same one, acting in an organization that may be another."""
        return Actor(organization_id, self.key_id, self.ip, self.request_id)


def record(
    tx: AsyncSession, actor: Actor, action: str, target: str, data: Json | None = None
) -> None:
    """Write down a change in this transaction; never a secret."""
    tx.add(
        AuditEvent(
            id=new_id("audit_log-"),
            organization_id=actor.organization_id,
            key_id=actor.key_id,
            ip=actor.ip,
            request_id=actor.request_id,
            action=action,
            target=target,
            data=data or {},
        )
    )


async def list_events(
    tx: AsyncSession,
    organization_id: str,
    *,
    actions: Sequence[str],
    after: str | None,
    limit: int,
) -> Page[AuditEvent]:
    """Return a page of what was changed in an organization, newest first."""
    query = select(AuditEvent).where(AuditEvent.organization_id == organization_id)
    if actions:
        query = query.where(AuditEvent.action.in_(actions))
    if after:
        seq = select(AuditEvent.seq).where(
            AuditEvent.id == after, AuditEvent.organization_id == organization_id
        )
        query = query.where(AuditEvent.seq < seq.scalar_subquery())
    rows = await tx.scalars(query.order_by(AuditEvent.seq.desc()).limit(limit + 1))
    return cut(list(rows), limit)


async def latest(
    tx: AsyncSession, organization: str | None, *, limit: int
) -> list[tuple[AuditEvent, str]]:
    """Return the last changes of one organization by its name, or of all, oldest first."""
    query = select(AuditEvent, Organization.name).join(
        Organization, Organization.id == AuditEvent.organization_id
    )
    if organization is not None:
        query = query.where(Organization.name == organization)
    rows = await tx.execute(query.order_by(AuditEvent.seq.desc()).limit(limit))
    return [(event, name) for event, name in rows][::-1]
