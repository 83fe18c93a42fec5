"""Models a caller can name: the operator's bases and the caller's own fine-tuned ones."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import NotFound
from app.jobs.states import JobStatus
from app.models import catalog
from app.models.schemas import ModelOut
from app.settings import Settings
from app.tables import Job


async def list_models(tx: AsyncSession, organization_id: str, settings: Settings) -> list[ModelOut]:
    """Return base models first, then the caller's fine-tuned ones, newest first."""
    bases = [
        ModelOut(
            id=base.name,
            object="model",
            created=base.created_at,
            owned_by="operator",
            task=base.task,
        )
        for base in catalog.base_models(
            settings.models_dir, settings.hub_revisions, settings.hub_tasks
        )
    ]
    query = select(Job).where(
        Job.organization_id == organization_id, Job.status == JobStatus.SUCCEEDED
    )
    jobs = await tx.scalars(query.order_by(Job.created_at.desc()))
    return bases + [_tuned(job) for job in jobs]


async def get_model(
    tx: AsyncSession, organization_id: str, settings: Settings, name: str
) -> ModelOut:
    """Return one model.

    Raises:
        NotFound: neither a base nor a model of the caller's.
    """
    for model in await list_models(tx, organization_id, settings):
        if model.id == name:
            return model
    raise NotFound(f"The model {name!r} does not exist.", param="model")


def _tuned(job: Job) -> ModelOut:
    finished = job.finished_at or job.created_at
    return ModelOut(
        id=job.fine_tuned_model or "",
        object="model",
        created=int(finished.timestamp()),
        owned_by=job.organization_id,
        task=job.spec.get("task", "causal"),
    )
