"""Jobs that a page shows, without the time that training them would take."""

from app.db import connected
from app.ids import token
from app.jobs.states import JobStatus
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
