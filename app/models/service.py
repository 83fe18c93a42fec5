"""Models a caller can name: the operator's bases and the caller's own fine-tuned ones."""

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import blobs
from app.errors import InvalidRequest, ModelInUse, NotFound
from app.jobs.states import TERMINAL, JobStatus
from app.models import catalog
from app.models.schemas import ModelOut
from app.permissions import service as permissions
from app.permissions.service import readable_by
from app.settings import Settings
from app.tables import Checkpoint, Job


async def list_models(tx: AsyncSession, organization_id: str, settings: Settings) -> list[ModelOut]:
    """Return base models first, then fine-tuned ones, newest first: own ones, and shared."""
    query = select(Job).where(
        readable_by(organization_id, Job.fine_tuned_model),
        Job.status == JobStatus.SUCCEEDED,
        Job.model_deleted_at.is_(None),
    )
    jobs = await tx.scalars(query.order_by(Job.created_at.desc()))
    return _bases(settings) + [_tuned(job, job.fine_tuned_model or "") for job in jobs]


async def get_model(
    tx: AsyncSession, organization_id: str, settings: Settings, name: str
) -> ModelOut:
    """Return one model: a base, a fine-tuned one, or that of a checkpoint.

    Raises:
        NotFound: none of that name is offered to the caller.
    """
    for base in _bases(settings):
        if base.id == name:
            return base
    finished = select(Job).where(
        readable_by(organization_id, Job.fine_tuned_model),
        Job.fine_tuned_model == name,
        Job.model_deleted_at.is_(None),
    )
    of_checkpoint = (
        select(Job)
        .join(Checkpoint, Checkpoint.job_id == Job.id)
        .where(readable_by(organization_id, Checkpoint.model), Checkpoint.model == name)
    )
    for query in (finished, of_checkpoint):
        job = (await tx.scalars(query.limit(1))).first()
        if job is not None:
            return _tuned(job, name)
    raise NotFound(f"The model {name!r} does not exist.", param="model")


async def delete_model(
    tx: AsyncSession, organization_id: str, settings: Settings, name: str
) -> None:
    """Delete a fine-tuned model of the caller's, or one of a checkpoint; the job stays.

    Raises:
        InvalidRequest: a base model, which is the operator's.
        ModelInUse: a job that is not over goes on from it.
        NotFound: the caller owns no such model.
    """
    if any(base.id == name for base in _bases(settings)):
        raise InvalidRequest(
            f"{name} is a base model: only the operator removes it.", param="model"
        )
    blob_id = await _forget(tx, organization_id, name)
    if blob_id is None:
        raise NotFound(f"The model {name!r} does not exist.", param="model")
    await _require_unread(tx, organization_id, name)
    await blobs.discard(tx, blob_id)
    await permissions.drop(tx, organization_id, name)


async def _forget(tx: AsyncSession, organization_id: str, name: str) -> str | None:
    """Take a model from its job, or delete its checkpoint; return its blob, if it was there."""
    mine = Job.organization_id == organization_id
    finished = select(Job).where(mine, Job.fine_tuned_model == name, Job.model_deleted_at.is_(None))
    job = (await tx.scalars(finished.with_for_update())).one_or_none()
    if job is not None:
        blob_id, job.adapter_blob_id = job.adapter_blob_id, None
        job.model_deleted_at = func.now()
        await tx.flush()
        return blob_id
    jobs = select(Job.id).where(mine)
    checkpoint = delete(Checkpoint).where(Checkpoint.model == name, Checkpoint.job_id.in_(jobs))
    return (await tx.scalars(checkpoint.returning(Checkpoint.blob_id))).one_or_none()


async def _require_unread(tx: AsyncSession, organization_id: str, name: str) -> None:
    """Refuse while a job reads a model; that of an organization it is shared with stays unnamed."""
    source = Job.spec["peft"]["from"].astext
    readers = select(Job.id, Job.organization_id).where(source == name, Job.status.not_in(TERMINAL))
    own_first = readers.order_by((Job.organization_id == organization_id).desc()).limit(1)
    reader = (await tx.execute(own_first)).first()
    if reader is None:
        return
    if reader.organization_id == organization_id:
        raise ModelInUse(f"A job goes on from {name} ({reader.id}); cancel it, or wait.")
    raise ModelInUse(
        f"A job of an organization that {name} is shared with goes on from it; wait for its end."
    )


def _bases(settings: Settings) -> list[ModelOut]:
    offered = catalog.base_models(settings.models_dir, settings.hub_revisions, settings.hub_tasks)
    return [
        ModelOut(
            id=base.name,
            object="model",
            created=base.created_at,
            owned_by="operator",
            task=base.task,
        )
        for base in offered
    ]


def _tuned(job: Job, name: str) -> ModelOut:
    finished = job.finished_at or job.created_at
    return ModelOut(
        id=name,
        object="model",
        created=int(finished.timestamp()),
        owned_by=job.organization_id,
        task=job.spec.get("task", "causal"),
    )
