"""Permissions on the wire."""

from typing import Literal

from pydantic import BaseModel, Field

from app.paging import Listed
from app.schemas import Asked
from app.tables import CheckpointPermission


class CreatePermissions(Asked):
    """With which organizations to share a model."""

    project_ids: list[str] = Field(min_length=1, max_length=100)


class PermissionOut(Listed):
    """A permission, as OpenAI's client reads it."""

    object: Literal["checkpoint.permission"]
    created_at: int
    project_id: str


class PermissionDeletedOut(BaseModel):
    """The receipt of a deletion."""

    id: str
    object: Literal["checkpoint.permission"]
    deleted: bool


def permission_out(permission: CheckpointPermission) -> PermissionOut:
    """Show a permission on the wire."""
    return PermissionOut(
        id=permission.id,
        object="checkpoint.permission",
        created_at=int(permission.created_at.timestamp()),
        project_id=permission.project_id,
    )
