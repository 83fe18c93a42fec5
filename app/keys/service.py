"""Bearer keys: made once, shown once, kept as a keyed digest."""

import hashlib
import hmac
from dataclasses import dataclass

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import InvalidApiKey, NotFound
from app.ids import new_id, token
from app.tables import ApiKey, Organization

ID_LENGTH = 12
SECRET_LENGTH = 36


@dataclass(frozen=True)
class Caller:
    """Who asks: every query of theirs carries the organization."""

    organization_id: str
    key_id: str
    admin: bool = False


async def create(
    tx: AsyncSession, *, organization: str, name: str, pepper: str, admin: bool = False
) -> str:
    """Make a key for an organization (made too, when it is new) and return it in the clear."""
    key_id, secret = token(ID_LENGTH), token(SECRET_LENGTH)
    organization_id = await _organization_id(tx, organization)
    tx.add(
        ApiKey(
            id=key_id,
            organization_id=organization_id,
            name=name,
            admin=admin,
            digest=digest(secret, pepper),
            expires_at=None,
            revoked_at=None,
        )
    )
    await tx.flush()
    return f"sk-{key_id}{secret}"


async def revoke(tx: AsyncSession, key_id: str) -> None:
    """Make a key useless at once.

    Raises:
        NotFound: there is no such key.
    """
    key = await tx.get(ApiKey, key_id)
    if key is None:
        raise NotFound(f"No key {key_id}; `basin keys list` shows them.")
    key.revoked_at = func.now()
    await tx.flush()


async def list_keys(tx: AsyncSession) -> list[tuple[ApiKey, Organization]]:
    """Return every key with its organization, oldest first."""
    query = select(ApiKey, Organization).join(
        Organization, ApiKey.organization_id == Organization.id
    )
    rows = await tx.execute(query.order_by(ApiKey.created_at))
    return [(key, organization) for key, organization in rows]


async def authenticate(tx: AsyncSession, bearer: str, *, pepper: str) -> Caller:
    """Return who holds the key.

    Raises:
        InvalidApiKey: unknown, revoked or expired; the message is the same for all three.
    """
    key_id, secret = bearer[3 : 3 + ID_LENGTH], bearer[3 + ID_LENGTH :]
    live = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())
    query = select(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None), live)
    key = (await tx.execute(query)).scalar_one_or_none()
    kept = key.digest if key else b""
    if key is None or not hmac.compare_digest(kept, digest(secret, pepper)):
        raise InvalidApiKey("Incorrect API key. Make one with `basin keys create`.")
    return Caller(organization_id=key.organization_id, key_id=key.id, admin=key.admin)


def digest(secret: str, pepper: str) -> bytes:
    """Return what is kept of a key's secret."""
    return hmac.new(pepper.encode(), secret.encode(), hashlib.sha256).digest()


async def _organization_id(tx: AsyncSession, name: str) -> str:
    query = select(Organization.id).where(Organization.name == name)
    found = (await tx.execute(query)).scalar_one_or_none()
    if found:
        return found
    organization = Organization(id=new_id("org-"), name=name)
    tx.add(organization)
    await tx.flush()
    return organization.id
