"""Keys on the wire."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.keys.service import Made, Scope
from app.paging import Listed
from app.schemas import NO_CONTROL, Asked
from app.tables import ApiKey, Organization


class CreateKey(Asked):
    """A key of your organization."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"name": "dashboard", "scope": "read", "expires_days": 90}},
    )

    name: str = Field(min_length=1, max_length=256, pattern=NO_CONTROL)
    scope: Literal[Scope.READ, Scope.WRITE, Scope.ADMIN] = Field(
        default=Scope.WRITE,
        description="read looks, write submits too, admin manages keys too.",
    )
    expires_days: int | None = Field(default=None, ge=1, le=3650)


class RotateKey(Asked):
    """How long the old secret is good still; by default it ends at once."""

    grace_minutes: int = Field(default=0, ge=0, le=60 * 24 * 30)


class KeyOut(Listed):
    """A key without its secret. `previous_until` is when the secret before the last one ends."""

    object: Literal["organization.key"]
    name: str
    scope: Scope
    state: Literal["live", "expired", "revoked"]
    created_at: int
    expires_at: int | None
    previous_until: int | None


class OwnerOut(BaseModel):
    id: str
    name: str


class SelfOut(KeyOut):
    """The key that asks, and whose it is."""

    organization: OwnerOut


class SecretKeyOut(KeyOut):
    """A key with its secret, which is shown this once."""

    key: str


class RevokedOut(BaseModel):
    """The receipt of a revocation."""

    id: str
    object: Literal["organization.key"]
    deleted: bool


def key_out(key: ApiKey, state: str) -> KeyOut:
    """Show a key on the wire."""
    return KeyOut.model_validate(_shown(key, state))


def secret_key_out(made: Made) -> SecretKeyOut:
    """Show a key that was made or rotated just now, and its secret."""
    return SecretKeyOut.model_validate(_shown(made.key, "live") | {"key": made.secret})


def self_out(key: ApiKey, owner: Organization) -> SelfOut:
    """Show a key that was good a moment ago to who holds it."""
    return SelfOut.model_validate(
        _shown(key, "live") | {"organization": {"id": owner.id, "name": owner.name}}
    )


def _shown(key: ApiKey, state: str) -> dict[str, object]:
    until = key.previous_until
    return {
        "id": key.id,
        "object": "organization.key",
        "name": key.name,
        "scope": key.scope,
        "state": state,
        "created_at": int(key.created_at.timestamp()),
        "expires_at": int(key.expires_at.timestamp()) if key.expires_at else None,
        "previous_until": int(until.timestamp()) if until else None,
    }
