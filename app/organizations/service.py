"""Organizations: the tenants that own files, jobs, adapters and keys."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

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
