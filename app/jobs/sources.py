"""Fine-tuned models by name: what a new job may go on from."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import ModelNotFound
from app.jobs.spec import PeftSpec, Task, TrainSpec
from app.permissions.service import readable_by
from app.tables import Checkpoint, Job


@dataclass(frozen=True)
class Source:
    """An adapter the caller may use: how it was made, on which base, where its archive is."""

    base_model: str
    task: Task
    peft: PeftSpec
    blob_id: str


async def find(tx: AsyncSession, organization_id: str, name: str) -> Source:
    """Return the adapter of a finished job, or of one of its checkpoints: own ones, and shared.

    Raises:
        ModelNotFound: the caller has none of that name.
    """
    finished = select(Job.spec, Job.adapter_blob_id).where(
        readable_by(organization_id, Job.fine_tuned_model), Job.fine_tuned_model == name
    )
    row = (await tx.execute(finished)).first()
    if row is None:
        checkpoint = (
            select(Job.spec, Checkpoint.blob_id)
            .join(Checkpoint, Checkpoint.job_id == Job.id)
            .where(readable_by(organization_id, Checkpoint.model), Checkpoint.model == name)
        )
        row = (await tx.execute(checkpoint)).first()
    if row is None or row[1] is None:
        raise ModelNotFound(f"You have no fine-tuned model {name!r}.", param="peft.from")
    spec = TrainSpec.model_validate(row[0])
    return Source(spec.base_model, spec.task, spec.peft, row[1])
