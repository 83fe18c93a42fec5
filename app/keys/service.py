"""Bearer keys: made once, shown once, kept as a keyed digest."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Row, Text, and_, bindparam, case, func, or_, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from app import audit
from app.audit import Actor
from app.db import Database, from_now
from app.errors import InsufficientPermissions, InvalidApiKey, InvalidRequest, NotFound
from app.ids import is_readable, token
from app.organizations import service as organizations
from app.rounds import Rounds
from app.tables import ApiKey, Organization

ID_LENGTH = 12
SECRET_LENGTH = 36

_EXPIRED = and_(ApiKey.expires_at.is_not(None), ApiKey.expires_at <= func.now())
LIVE = and_(
    ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())
)
# Asked at each request, hence made once.
_LIVE_KEYS = select(
    ApiKey.id,
    ApiKey.organization_id,
    ApiKey.scope,
    ApiKey.digest,
    case((ApiKey.previous_until > func.now(), ApiKey.previous_digest)).label("previous"),
).where(ApiKey.id == func.any(bindparam("key_ids", type_=ARRAY(Text))), LIVE)
STATE = case((ApiKey.revoked_at.is_not(None), "revoked"), (_EXPIRED, "expired"), else_="live")


class Scope(StrEnum):
    """What a key may do; each includes those before it.

    An operator's key reaches every organization: only the command line makes one.
    """

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"
    OPERATOR = "operator"

    def includes(self, needed: "Scope") -> bool:
        """Say whether a key of this scope may do what needs the other."""
        order = list(Scope)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True)
class Caller(Actor):
    """Who asks: every query of theirs carries the organization."""

    key_id: str
    scope: Scope = Scope.READ

    def require(self, needed: Scope) -> None:
        """Let pass a key that may do this.

        What only an operator may is not there for others, as another tenant's things are not.

        Raises:
            InsufficientPermissions: it may not.
            NotFound: it may not, and this is the operator's.
        """
        if needed is Scope.OPERATOR and self.scope is not needed:
            raise NotFound("There is nothing here for this key.")
        if not self.scope.includes(needed):
            raise InsufficientPermissions(
                f"This needs a key with the scope {needed.value!r}; {self.key_id} has"
                f" {self.scope.value!r}. Ask an administrator of your organization for another."
            )


@dataclass(frozen=True)
class Made:
    """A key and, this once, its secret in the clear."""

    key: ApiKey
    secret: str


async def create(
    tx: AsyncSession,
    *,
    organization: str,
    name: str,
    pepper: str,
    scope: Scope = Scope.WRITE,
    expires_days: int | None = None,
) -> str:
    """Make a key for an organization (made too, when it is new) and return it in the clear."""
    owner = await organizations.get_or_make(tx, organization)
    operator = Actor(owner.id)
    made = await make(
        tx, operator, name=name, pepper=pepper, scope=scope, expires_days=expires_days
    )
    return made.secret


async def make(
    tx: AsyncSession,
    by: Actor,
    *,
    name: str,
    pepper: str,
    scope: Scope,
    expires_days: int | None,
) -> Made:
    """Make a key for the organization of who asks."""
    key_id, secret = token(ID_LENGTH), token(SECRET_LENGTH)
    key = ApiKey(
        id=key_id,
        organization_id=by.organization_id,
        name=name,
        scope=scope,
        digest=digest(secret, pepper),
        expires_at=None if expires_days is None else from_now(days=expires_days),
    )
    tx.add(key)
    audit.record(
        tx,
        by,
        "key.created",
        key_id,
        {"name": name, "scope": scope, "expires_days": expires_days},
    )
    await tx.flush()
    await tx.refresh(key)
    return Made(key, f"sk-{key_id}{secret}")


async def rotate(
    tx: AsyncSession, key: ApiKey, by: Actor, *, pepper: str, grace_minutes: int = 0
) -> Made:
    """Give a key a new secret at once; the old one is good for some minutes more.

    A secret from before that ends now, whatever was left of its own grace.

    Raises:
        InvalidRequest: the key is revoked or has expired.
    """
    if await _state(tx, key) != "live":
        raise InvalidRequest(f"Key {key.id} is revoked or has expired; make a new one.")
    secret = token(SECRET_LENGTH)
    key.previous_digest, key.previous_until = None, None
    if grace_minutes:
        key.previous_digest = key.digest
        key.previous_until = from_now(minutes=grace_minutes)
    key.digest = digest(secret, pepper)
    audit.record(tx, by, "key.rotated", key.id, {"grace_minutes": grace_minutes})
    await tx.flush()
    await tx.refresh(key)
    return Made(key, f"sk-{key.id}{secret}")


async def is_live(tx: AsyncSession, key_id: str) -> bool:
    """Say whether a key is good still."""
    return await tx.scalar(select(STATE).where(ApiKey.id == key_id)) == "live"


async def revoke(tx: AsyncSession, key: ApiKey, by: Actor) -> None:
    """Make a key useless at once, and what is left of its old secret too."""
    if key.revoked_at is None:
        key.revoked_at = func.now()
        audit.record(tx, by, "key.revoked", key.id)
        await tx.flush()


async def get(tx: AsyncSession, key_id: str, *, organization_id: str | None = None) -> ApiKey:
    """Return a key, of one organization or for the operator of any, and hold it.

    Raises:
        NotFound: no such key, or another tenant's.
    """
    query = select(ApiKey).where(ApiKey.id == key_id)
    if organization_id is not None:
        query = query.where(ApiKey.organization_id == organization_id)
    key = (await tx.execute(query.with_for_update(key_share=True))).scalar_one_or_none()
    if key is None:
        raise NotFound(f"No key {key_id}.", param="key_id")
    return key


async def list_keys(
    tx: AsyncSession, organization_id: str | None = None
) -> list[tuple[ApiKey, str, str]]:
    """Return keys oldest first, each with its organization's name and its state."""
    query = select(ApiKey, Organization.name, STATE).join(
        Organization, ApiKey.organization_id == Organization.id
    )
    if organization_id is not None:
        query = query.where(ApiKey.organization_id == organization_id)
    rows = await tx.execute(query.order_by(ApiKey.created_at, ApiKey.id))
    return [(key, organization, state) for key, organization, state in rows]


class Door:
    """Says who holds a key. Asked of the database each time: a revoked key ends at once.

    Those who come at the same time are looked up together.
    """

    def __init__(self, db: Database, *, pepper: str) -> None:
        self._db = db
        self._pepper = pepper
        self._rounds = Rounds(self._look)

    async def authenticate(self, bearer: str, *, ip: str | None, request_id: str | None) -> Caller:
        """Return who holds the key.

        Raises:
            InvalidApiKey: unknown, revoked or expired; the message is the same for all three.
        """
        key_id, secret = bearer[3 : 3 + ID_LENGTH], bearer[3 + ID_LENGTH :]
        # One that PostgreSQL cannot read is nobody's, and would end a round of others.
        key = (await self._rounds.ask([key_id])).get(key_id) if is_readable(key_id) else None
        given = digest(secret, self._pepper)
        kept = (key.digest, key.previous) if key else (None, None)
        good = [hmac.compare_digest(each or b"", given) for each in kept]
        if key is None or not any(good):
            raise InvalidApiKey("Incorrect API key. Make one with `basin keys create`.")
        return Caller(key.organization_id, key.id, ip, request_id, Scope(key.scope))

    async def _look(self, key_ids: Sequence[str]) -> dict[str, Row[Any]]:
        async with self._db.looking() as connection:
            found = await connection.execute(_LIVE_KEYS, {"key_ids": list(set(key_ids))})
        return {key.id: key for key in found}


def digest(secret: str, pepper: str) -> bytes:
    """Return what is kept of a key's secret."""
    return hmac.new(pepper.encode(), secret.encode(), hashlib.sha256).digest()


async def _state(tx: AsyncSession, key: ApiKey) -> str:
    found = await tx.execute(select(STATE).where(ApiKey.id == key.id))
    state: str = found.scalar_one()
    return state
