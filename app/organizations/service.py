"""Organizations: the tenants that own files, jobs, adapters and keys."""

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app import audit
from app.audit import Actor
from app.errors import InvalidRequest, NotFound
from app.ids import new_id
from app.paging import Page, cut
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


async def make(tx: AsyncSession, name: str, by: Actor) -> Organization:
    """Make an organization.

    Raises:
        InvalidRequest: there is one of that name.
    """
    insertion = insert(Organization).values(id=new_id("org-"), name=name).on_conflict_do_nothing()
    organization = (await tx.scalars(insertion.returning(Organization))).one_or_none()
    if organization is None:
        raise InvalidRequest(f"There is an organization {name} already.", param="name")
    audit.record(tx, by, "organization.created", organization.id, {"name": name})
    return organization


async def get(tx: AsyncSession, organization_id: str) -> Organization:
    """Return an organization.

    Raises:
        NotFound: there is none of that id.
    """
    query = select(Organization).where(Organization.id == organization_id)
    found = (await tx.execute(query)).scalar_one_or_none()
    if found is None:
        raise NotFound(f"No organization {organization_id}.", param="organization_id")
    return found


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


async def list_page(tx: AsyncSession, *, after: str | None, limit: int) -> Page[Organization]:
    """Return a page of all organizations, by id."""
    query = select(Organization).order_by(Organization.id)
    if after is not None:
        query = query.where(Organization.id > after)
    return cut(list(await tx.scalars(query.limit(limit + 1))), limit)


async def set_limits(
    tx: AsyncSession, organization: Organization, limits: Mapping[str, int | None], by: Actor
) -> None:
    """Change the limits that are named, by their columns; None lifts one."""
    for column, most in limits.items():
        setattr(organization, column, most)
    actor = by.within(organization.id)
    audit.record(tx, actor, "limits.changed", organization.id, dict(limits))
    await tx.flush()
