"""/v1/organization/keys"""

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.convertors import StringConvertor, register_url_convertor

from app.audit import Actor
from app.keys import service
from app.keys.schemas import (
    CreateKey,
    KeyOut,
    RevokedOut,
    RotateKey,
    SecretKeyOut,
    SelfOut,
    key_out,
    secret_key_out,
    self_out,
)
from app.keys.service import Scope
from app.organizations import service as organizations
from app.paging import ListOut, list_out
from app.settings import ApiSettings
from app.web import Admin, Caller, Config, Tx


class KeyIdConvertor(StringConvertor):
    """The place of a key's id in a path; /self is a path of its own, with methods of its own."""

    regex = "(?!self$)[^/]+"


register_url_convertor("key", KeyIdConvertor())
router = APIRouter(prefix="/v1/organization/keys", tags=["organization"])


@router.get("", response_model=ListOut[KeyOut])
async def list_keys(tx: Tx, caller: Admin) -> ListOut[KeyOut]:
    """List the keys of your organization, those that ended too, oldest first."""
    found = await service.list_keys(tx, caller.organization_id)
    return list_out([key_out(key, state) for key, _, state in found], has_more=False)


@router.get("/self", response_model=SelfOut)
async def get_own_key(tx: Tx, caller: Caller) -> SelfOut:
    """Describe the key that asks: its organization, and what it may do."""
    key = await service.get(tx, caller.key_id, organization_id=caller.organization_id)
    return self_out(key, await organizations.get(tx, caller.organization_id))


@router.post("", response_model=SecretKeyOut)
async def create_key(body: CreateKey, tx: Tx, caller: Admin, settings: Config) -> SecretKeyOut:
    """Make a key of your organization; its secret is shown this once."""
    return await make_key(tx, caller, body, settings)


async def make_key(
    tx: AsyncSession, by: Actor, body: CreateKey, settings: ApiSettings
) -> SecretKeyOut:
    """Make the key that is asked for, of the organization that somebody acts in."""
    made = await service.make(
        tx,
        by,
        name=body.name,
        scope=body.scope,
        expires_days=body.expires_days,
        pepper=settings.key_pepper.get_secret_value(),
    )
    return secret_key_out(made)


@router.post("/{key_id}/rotate", response_model=SecretKeyOut)
async def rotate_key(
    key_id: str, tx: Tx, caller: Admin, settings: Config, body: RotateKey | None = None
) -> SecretKeyOut:
    """Give a key a new secret at once, shown this once; the old one may be good for a grace."""
    key = await service.get(tx, key_id, organization_id=caller.organization_id)
    caller.require(Scope(key.scope))  # the new secret would be theirs
    made = await service.rotate(
        tx,
        key,
        caller,
        pepper=settings.key_pepper.get_secret_value(),
        grace_minutes=body.grace_minutes if body else 0,
    )
    return secret_key_out(made)


@router.delete("/{key_id:key}", response_model=RevokedOut)
async def revoke_key(key_id: str, tx: Tx, caller: Admin) -> RevokedOut:
    """Make a key useless at once; also the one that asks, which cannot take it back."""
    key = await service.get(tx, key_id, organization_id=caller.organization_id)
    caller.require(Scope(key.scope))
    await service.revoke(tx, key, caller)
    return RevokedOut(id=key_id, object="organization.key", deleted=True)
