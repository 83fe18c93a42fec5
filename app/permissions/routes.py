"""/v1/fine_tuning/checkpoints/{checkpoint}/permissions"""

from typing import Literal

from fastapi import APIRouter

from app import audit
from app.paging import ListOut, list_out
from app.permissions import service
from app.permissions.schemas import (
    CreatePermissions,
    PermissionDeletedOut,
    PermissionOut,
    permission_out,
)
from app.web import Admin, After, Limit, Tx

# A model's name may hold slashes: that of its base does.
router = APIRouter(
    prefix="/v1/fine_tuning/checkpoints/{checkpoint:path}/permissions", tags=["fine-tuning"]
)


@router.post("", response_model=ListOut[PermissionOut])
async def create_permissions(
    checkpoint: str, body: CreatePermissions, tx: Tx, caller: Admin
) -> ListOut[PermissionOut]:
    """Share a fine-tuned model, or one of a checkpoint, with other organizations."""
    shared = await service.create(tx, caller.organization_id, checkpoint, body.project_ids)
    for each in shared:
        told = {"model": checkpoint, "project_id": each.project_id}
        audit.record(tx, caller, "permission.created", each.id, told)
    return list_out([permission_out(each) for each in shared], has_more=False)


@router.get("", response_model=ListOut[PermissionOut])
async def list_permissions(
    checkpoint: str,
    tx: Tx,
    caller: Admin,
    *,
    project_id: str | None = None,
    after: After = None,
    limit: Limit = 10,
    order: Literal["ascending", "descending"] = "descending",
) -> ListOut[PermissionOut]:
    """List with whom a model is shared."""
    page = await service.list_permissions(
        tx,
        caller.organization_id,
        checkpoint,
        project_id=project_id,
        after=after,
        limit=limit,
        order=order,
    )
    return list_out([permission_out(each) for each in page.data], has_more=page.has_more)


@router.delete("/{permission_id}", response_model=PermissionDeletedOut)
async def delete_permission(
    checkpoint: str, permission_id: str, tx: Tx, caller: Admin
) -> PermissionDeletedOut:
    """Share a model no longer."""
    audit.record(tx, caller, "permission.deleted", permission_id, {"model": checkpoint})
    await service.revoke(tx, caller.organization_id, checkpoint, permission_id)
    return PermissionDeletedOut(id=permission_id, object="checkpoint.permission", deleted=True)
