"""Permissions: which other organizations may use a fine-tuned model.

A project of OpenAI's wire is an organization here. Who has permission may download the model's
adapter and train on from it; it stays its owner's.
"""

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import ColumnElement, delete, exists, or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import InvalidRequest, NotFound
from app.ids import new_id
from app.paging import Page, cut
from app.tables import Checkpoint, CheckpointPermission, Job, Organization


def readable_by(organization_id: str, model: Any) -> ColumnElement[bool]:
    """Select jobs that are the organization's, or whose model of that name is shared with it.

    `model` is a column: the name of the job's model, or of a checkpoint's.
    """
    shared = exists().where(
        CheckpointPermission.organization_id == Job.organization_id,
        CheckpointPermission.model == model,
        CheckpointPermission.project_id == organization_id,
    )
    return or_(Job.organization_id == organization_id, shared)


async def create(
    tx: AsyncSession, organization_id: str, model: str, project_ids: Sequence[str]
) -> list[CheckpointPermission]:
    """Share a model with organizations; sharing it twice is no error.

    Raises:
        InvalidRequest: one of them is not there.
        NotFound: no such model, or another tenant's.
    """
    await _require_own(tx, organization_id, model)
    found = select(Organization.id).where(Organization.id.in_(project_ids))
    missing = set(project_ids) - set(await tx.scalars(found))
    if missing:
        raise InvalidRequest(
            f"There is no organization {min(missing)}: a project is one here.", param="project_ids"
        )
    rows = [
        {
            "id": new_id("cp_"),
            "organization_id": organization_id,
            "model": model,
            "project_id": project_id,
        }
        for project_id in dict.fromkeys(project_ids)
    ]
    await tx.execute(insert(CheckpointPermission).on_conflict_do_nothing(), rows)
    query = select(CheckpointPermission).where(
        *_of(organization_id, model), CheckpointPermission.project_id.in_(project_ids)
    )
    return list(await tx.scalars(query.order_by(CheckpointPermission.id)))


async def list_permissions(
    tx: AsyncSession,
    organization_id: str,
    model: str,
    *,
    project_id: str | None,
    after: str | None,
    limit: int,
    order: Literal["ascending", "descending"],
) -> Page[CheckpointPermission]:
    """Return a page of a model's permissions.

    Raises:
        NotFound: no such model or, for `after`, permission of it.
    """
    await _require_own(tx, organization_id, model)
    query = select(CheckpointPermission).where(*_of(organization_id, model))
    if project_id:
        query = query.where(CheckpointPermission.project_id == project_id)
    key = tuple_(CheckpointPermission.created_at, CheckpointPermission.id)
    down = order == "descending"
    if after:
        last = await _get(tx, organization_id, model, after)
        cursor = tuple_(last.created_at, last.id)
        query = query.where(key < cursor if down else key > cursor)
    columns = (CheckpointPermission.created_at, CheckpointPermission.id)
    ordering = [column.desc() if down else column.asc() for column in columns]
    return cut(list(await tx.scalars(query.order_by(*ordering).limit(limit + 1))), limit)


async def revoke(tx: AsyncSession, organization_id: str, model: str, permission_id: str) -> None:
    """Take a permission back; what was downloaded stays where it is.

    Raises:
        NotFound: no such permission, or another tenant's.
    """
    await tx.delete(await _get(tx, organization_id, model, permission_id))
    await tx.flush()


async def drop(tx: AsyncSession, organization_id: str, model: str) -> None:
    """Forget the permissions of a model that is deleted."""
    await tx.execute(delete(CheckpointPermission).where(*_of(organization_id, model)))


def _of(organization_id: str, model: str) -> tuple[ColumnElement[bool], ...]:
    return (
        CheckpointPermission.organization_id == organization_id,
        CheckpointPermission.model == model,
    )


async def _get(
    tx: AsyncSession, organization_id: str, model: str, permission_id: str
) -> CheckpointPermission:
    query = select(CheckpointPermission).where(
        *_of(organization_id, model), CheckpointPermission.id == permission_id
    )
    found = (await tx.scalars(query)).one_or_none()
    if found is None:
        raise NotFound(f"{model} has no permission {permission_id}.", param="permission_id")
    return found


async def _require_own(tx: AsyncSession, organization_id: str, model: str) -> None:
    finished = select(Job.id).where(
        Job.organization_id == organization_id,
        Job.fine_tuned_model == model,
        Job.model_deleted_at.is_(None),
    )
    checkpoint = (
        select(Checkpoint.id)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Job.organization_id == organization_id, Checkpoint.model == model)
    )
    for query in (finished, checkpoint):
        if (await tx.scalars(query.limit(1))).first() is not None:
            return
    raise NotFound(
        f"You have no fine-tuned model or checkpoint {model!r}.",
        param="fine_tuned_model_checkpoint",
    )
