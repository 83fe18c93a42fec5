"""Organizations: the tenants that own files, jobs, adapters and keys."""

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app import audit
from app.audit import Actor
from app.errors import NotFound
from app.ids import new_id
from app.tables import Organization


async def get_or_make(tx: AsyncSession, name: str) -> Organization:
    """Return the organization of that name; a new one, when there is none."""
    query = select(Organization).where(Organization.name == name)
    found = (await tx.execute(query)).scalar_one_or_none()
    if found is not None:
        return found
    organization = Organization(id=new_id("org-"), name=name)
    tx.add(organization)
    await tx.flush()
    return organization


async def get(tx: AsyncSession, organization_id: str) -> Organization:
    """Return an organization that is there."""
    query = select(Organization).where(Organization.id == organization_id)
    return (await tx.execute(query)).scalar_one()


async def named(tx: AsyncSession, name: str) -> Organization:
    """Return the organization of that name.

    Raises:
        NotFound: there is none.
    """
    query = select(Organization).where(Organization.name == name)
    found = (await tx.execute(query)).scalar_one_or_none()
    if found is None:
        raise NotFound(f"No organization {name}; `basin orgs list` shows them.")
    return found


async def list_all(tx: AsyncSession) -> list[Organization]:
    """Return every organization by name."""
    return list(await tx.scalars(select(Organization).order_by(Organization.name)))


async def set_limits(
    tx: AsyncSession, organization: Organization, limits: Mapping[str, int | None]
) -> None:
    """Change the limits that are named, by their columns, as the operator; None lifts one."""
    for column, most in limits.items():
        setattr(organization, column, most)
    audit.record(tx, Actor(organization.id), "limits.changed", organization.id, dict(limits))
    await tx.flush()
