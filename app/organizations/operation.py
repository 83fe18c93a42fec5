"""/v1/organizations: all tenants, for the operator's keys alone."""

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncSession

from app.keys import service as keys
from app.keys.routes import make_key
from app.keys.schemas import CreateKey, KeyOut, RevokedOut, SecretKeyOut, key_out
from app.organizations import quotas, service
from app.organizations.routes import InMonth, used_in
from app.organizations.schemas import (
    CreateOrganization,
    OrganizationOut,
    SetLimits,
    UsageOut,
    organization_out,
)
from app.paging import ListOut, list_out
from app.tables import Organization
from app.web import After, Config, Limit, Operator, Tx

router = APIRouter(prefix="/v1/organizations", tags=["organizations"])


@router.get("", response_model=ListOut[OrganizationOut])
async def list_organizations(
    tx: Tx, caller: Operator, *, after: After = None, limit: Limit = 20
) -> ListOut[OrganizationOut]:
    """List all organizations, with what each uses of what it may."""
    page = await service.list_page(tx, after=after, limit=limit)
    return list_out([await _shown(tx, each) for each in page.data], has_more=page.has_more)


@router.post("", response_model=OrganizationOut)
async def create_organization(
    body: CreateOrganization, tx: Tx, caller: Operator
) -> OrganizationOut:
    """Make an organization; it has no key and no limit yet."""
    return await _shown(tx, await service.make(tx, body.name, caller))


@router.get("/{organization_id}", response_model=OrganizationOut)
async def get_organization(organization_id: str, tx: Tx, caller: Operator) -> OrganizationOut:
    """Show an organization, with what it uses of what it may."""
    return await _shown(tx, await service.get(tx, organization_id))


@router.post("/{organization_id}/limits", response_model=OrganizationOut)
async def set_limits(
    organization_id: str, body: SetLimits, tx: Tx, caller: Operator
) -> OrganizationOut:
    """Set what an organization may use, from its next request on; nothing that runs is ended."""
    organization = await service.get(tx, organization_id)
    await service.set_limits(tx, organization, body.model_dump(exclude_unset=True), caller)
    return await _shown(tx, organization)


@router.get("/{organization_id}/usage", response_model=UsageOut)
async def get_usage(
    organization_id: str, tx: Tx, caller: Operator, month: InMonth = None
) -> UsageOut:
    """Show what an organization used in a month."""
    organization = await service.get(tx, organization_id)
    return await used_in(tx, organization.id, month)


@router.get("/{organization_id}/keys", response_model=ListOut[KeyOut])
async def list_keys(organization_id: str, tx: Tx, caller: Operator) -> ListOut[KeyOut]:
    """List an organization's keys, those that ended too, oldest first."""
    organization = await service.get(tx, organization_id)
    found = await keys.list_keys(tx, organization.id)
    return list_out([key_out(key, state) for key, _, state in found], has_more=False)


@router.post("/{organization_id}/keys", response_model=SecretKeyOut)
async def create_key(
    organization_id: str, body: CreateKey, tx: Tx, caller: Operator, settings: Config
) -> SecretKeyOut:
    """Make a key for an organization, its first one too; its secret is shown this once."""
    organization = await service.get(tx, organization_id)
    return await make_key(tx, caller.within(organization.id), body, settings)


@router.delete("/{organization_id}/keys/{key_id}", response_model=RevokedOut)
async def revoke_key(organization_id: str, key_id: str, tx: Tx, caller: Operator) -> RevokedOut:
    """Make a key of an organization useless at once."""
    key = await keys.get(tx, key_id, organization_id=organization_id)
    await keys.revoke(tx, key, caller.within(organization_id))
    return RevokedOut(id=key_id, object="organization.key", deleted=True)


async def _shown(tx: AsyncSession, organization: Organization) -> OrganizationOut:
    return organization_out(organization, await quotas.used(tx, organization.id))
