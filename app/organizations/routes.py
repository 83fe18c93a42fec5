"""/v1/organization"""

from fastapi import APIRouter

from app.organizations import quotas, service
from app.organizations.schemas import LimitsOut, limits_out
from app.web import Admin, Tx

router = APIRouter(prefix="/v1/organization", tags=["organization"])


@router.get("/limits", response_model=LimitsOut)
async def get_limits(tx: Tx, caller: Admin) -> LimitsOut:
    """Show what your organization may use, and what it uses. The operator sets it."""
    organization = await service.get(tx, caller.organization_id)
    return limits_out(organization, await quotas.used(tx, caller.organization_id))
