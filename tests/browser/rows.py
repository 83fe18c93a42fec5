"""Jobs that a page shows, without the time that training them would take."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from app.db import connected
from app.ids import token
from app.jobs import lease
from app.jobs.lease import Claim
from app.jobs.spec import EvalDone, RolloutSampled, TrainSpec
from app.jobs.states import JobStatus
from app.tables import Job
from tests.app import records
from tests.conftest import Api


async def put_jobs(
    api: Api, organization: str, *, like: str, newer: int, task: str = "causal"
) -> None:
    """Leave one job that succeeded, and newer ones that were cancelled, all of one spec."""
    async with connected(api.settings.database_url) as db:
        owner = await records.run(
            db, "SELECT id FROM organizations WHERE name = :name", name=organization
        )
        spec = await records.run(db, "SELECT spec FROM jobs WHERE id = :id", id=like)
        spec["task"] = task
        file = await records.make_file(db, owner)
        needle = records.new_job(owner, file.id, JobStatus.SUCCEEDED, suffix="needle")
        needle.spec, needle.fine_tuned_model = spec, f"ft:tiny-llama:{owner}:needle:{token(8)}"
        async with db.transaction() as tx:
            tx.add(needle)
        async with db.transaction() as tx:
            for _ in range(newer):
                job = records.new_job(owner, file.id, JobStatus.CANCELLED)
                job.spec = spec
                tx.add(job)


async def put_rollouts(
    api: Api,
    organization_id: str,
    *,
    like: str,
    name: str,
    said: Sequence[RolloutSampled | EvalDone],
) -> str:
    """Leave a job by reinforcement that succeeded, and said this, with the spec of another."""
    async with connected(api.settings.database_url) as db:
        spec = await records.run(db, "SELECT spec FROM jobs WHERE id = :id", id=like)
        file = await records.make_file(db, organization_id)
        job = records.new_job(organization_id, file.id, JobStatus.RUNNING, suffix=name, attempt=1)
        job.spec = spec | {"job_id": job.id}
        job.method = {"type": "reinforcement"}
        job.lease_until = datetime.now(UTC) + timedelta(hours=1)
        async with db.transaction() as tx:
            tx.add(job)
        held = _claim(job)
        async with db.transaction() as tx:
            await lease.renew(tx, held)
            await lease.record(tx, held, said)
        ended = "UPDATE jobs SET status = 'succeeded', step = total_steps WHERE id = :id"
        await records.run(db, ended, id=job.id)
    return job.id


def _claim(job: Job) -> Claim:
    return Claim(
        job_id=job.id,
        organization_id=job.organization_id,
        attempt=job.attempt,
        spec=TrainSpec.model_validate(job.spec),
        training_file_id=job.training_file_id,
        validation_file_id=None,
        suffix=job.suffix,
        step=0,
        ran_s=0.0,
    )
