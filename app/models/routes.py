"""/v1/models"""

from fastapi import APIRouter

from app import audit
from app.models import service
from app.models.schemas import ModelDeletedOut, ModelList, ModelOut
from app.web import Caller, Config, Tx, Writer

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", response_model=ModelList)
async def list_models(tx: Tx, caller: Caller, settings: Config) -> ModelList:
    """List the base models of this server and your fine-tuned ones."""
    return ModelList(
        object="list", data=await service.list_models(tx, caller.organization_id, settings)
    )


@router.get("/{model:path}", response_model=ModelOut)
async def get_model(model: str, tx: Tx, caller: Caller, settings: Config) -> ModelOut:
    """Describe one model."""
    return await service.get_model(tx, caller.organization_id, settings, model)


@router.delete("/{model:path}", response_model=ModelDeletedOut)
async def delete_model(model: str, tx: Tx, caller: Writer, settings: Config) -> ModelDeletedOut:
    """Delete a fine-tuned model of yours, with its adapter; its job stays."""
    audit.record(tx, caller, "model.deleted", model)
    await service.delete_model(tx, caller.organization_id, settings, model)
    return ModelDeletedOut(id=model, object="model", deleted=True)
