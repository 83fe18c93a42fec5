"""/v1/organization/integrations"""

from fastapi import APIRouter

from app.integrations import service
from app.integrations.schemas import DeletedOut, IntegrationOut, StoreKey, integration_out
from app.web import Admin, Seal, Tx

router = APIRouter(prefix="/v1/organization/integrations", tags=["organization"])


@router.put("/wandb", response_model=IntegrationOut)
async def store_wandb_key(body: StoreKey, tx: Tx, caller: Admin, vault: Seal) -> IntegrationOut:
    """Store your organization's key of Weights & Biases, in place of the one before."""
    key = await service.store(tx, caller, body.api_key.get_secret_value(), vault=vault)
    return integration_out(key)


@router.get("/wandb", response_model=IntegrationOut)
async def get_wandb_key(tx: Tx, caller: Admin) -> IntegrationOut:
    """Say which key is stored; it is never shown."""
    return integration_out(await service.get(tx, caller.organization_id))


@router.delete("/wandb", response_model=DeletedOut)
async def delete_wandb_key(tx: Tx, caller: Admin) -> DeletedOut:
    """Forget the key; jobs that still send with it cannot any more."""
    await service.delete(tx, caller)
    return DeletedOut(object="organization.integration.deleted", type="wandb", deleted=True)
