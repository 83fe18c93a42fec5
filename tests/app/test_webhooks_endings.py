"""However a job ends, who wants to know is told once, in the transaction that ends it."""

from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from sqlalchemy import delete, func, select, text, update

from app.db import Database
from app.jobs import lease
from app.jobs.lease import MAX_LOST_ATTEMPTS, Claim, Failure
from app.jobs.spec import Finished
from app.tables import Job, WebhookDelivery, WebhookEndpoint
from tests.app.records import ready_blob

pytestmark = pytest.mark.usefixtures("empty_queue")
JOBS = "/fine_tuning/jobs"
KILLED = Failure("killed", "The run was killed.")


@pytest.fixture
def job_id(http: httpx.Client, training_file: str, empty_queue: None) -> str:
    body = {"model": "tiny-llama", "training_file": training_file}
    found: str = http.post(JOBS, json=body).json()["id"]
    return found


@pytest.fixture
async def subscribed(db: Database, job_id: str) -> AsyncIterator[None]:
    """An endpoint for the job's organization that is never asked: nothing listens there."""
    await subscribe(db, job_id)
    yield
    async with db.transaction() as tx:
        await tx.execute(delete(WebhookEndpoint).where(WebhookEndpoint.id == f"wh_{job_id}"))


async def claimed(db: Database) -> Claim:
    async with db.transaction() as tx:
        held = await lease.claim(tx, "w1", free=1)
    assert held is not None
    return held


async def succeeds(db: Database, http: httpx.Client, job_id: str) -> None:
    held = await claimed(db)
    adapter = await ready_blob(db, held.organization_id, b"adapter")
    finished = Finished(at=0.0, step=1, trained_tokens=1, metrics={})
    async with db.transaction() as tx:
        await lease.succeed(
            tx, held, finished, adapter_blob_id=adapter.blob_id, result_file_id="file-x"
        )


async def fails(db: Database, http: httpx.Client, job_id: str) -> None:
    held = await claimed(db)
    async with db.transaction() as tx:
        await lease.fail(tx, held, Failure("nan", "The loss is not a number."))


async def is_killed_too_often(db: Database, http: httpx.Client, job_id: str) -> None:
    for _ in range(MAX_LOST_ATTEMPTS):
        await set_values(db, job_id, retry_at=None)
        held = await claimed(db)
        async with db.transaction() as tx:
            await lease.lose(tx, held, KILLED)


async def loses_its_workers(db: Database, http: httpx.Client, job_id: str) -> None:
    for _ in range(MAX_LOST_ATTEMPTS):
        await claimed(db)
        await falls_silent(db, job_id)


async def is_cancelled_while_it_waits(db: Database, http: httpx.Client, job_id: str) -> None:
    http.post(f"{JOBS}/{job_id}/cancel")


async def is_cancelled_while_it_is_paused(db: Database, http: httpx.Client, job_id: str) -> None:
    http.post(f"{JOBS}/{job_id}/pause")
    http.post(f"{JOBS}/{job_id}/cancel")


async def is_cancelled_while_it_runs(db: Database, http: httpx.Client, job_id: str) -> None:
    held = await claimed(db)
    http.post(f"{JOBS}/{job_id}/cancel")
    async with db.transaction() as tx:
        await lease.cancel(tx, held)


async def is_cancelled_as_it_is_given_back(db: Database, http: httpx.Client, job_id: str) -> None:
    held = await claimed(db)
    http.post(f"{JOBS}/{job_id}/cancel")
    async with db.transaction() as tx:
        await lease.give_back(tx, held, "The worker shut down")


async def is_cancelled_after_its_worker_died(db: Database, http: httpx.Client, job_id: str) -> None:
    await claimed(db)
    http.post(f"{JOBS}/{job_id}/cancel")
    await falls_silent(db, job_id)


async def is_asked_twice_to_cancel(db: Database, http: httpx.Client, job_id: str) -> None:
    http.post(f"{JOBS}/{job_id}/cancel")
    http.post(f"{JOBS}/{job_id}/cancel")


@pytest.mark.parametrize(
    ("ends", "event_type"),
    [
        (succeeds, "succeeded"),
        (fails, "failed"),
        (is_killed_too_often, "failed"),
        (loses_its_workers, "failed"),
        (is_cancelled_while_it_waits, "cancelled"),
        (is_cancelled_while_it_is_paused, "cancelled"),
        (is_cancelled_while_it_runs, "cancelled"),
        (is_cancelled_as_it_is_given_back, "cancelled"),
        (is_cancelled_after_its_worker_died, "cancelled"),
        (is_asked_twice_to_cancel, "cancelled"),
    ],
)
async def test_a_job_is_told_of_once_when_it(
    db: Database,
    http: httpx.Client,
    job_id: str,
    subscribed: None,
    ends: Callable[[Database, httpx.Client, str], Awaitable[None]],
    event_type: str,
):
    await ends(db, http, job_id)

    assert http.get(f"{JOBS}/{job_id}").json()["status"] == event_type
    assert await told(db, job_id) == [f"fine_tuning.job.{event_type}"]


async def test_a_job_that_goes_on_is_not_told_of(
    db: Database, http: httpx.Client, job_id: str, subscribed: None
):
    held = await claimed(db)

    async with db.transaction() as tx:
        await lease.give_back(tx, held, "The worker shut down")
    http.post(f"{JOBS}/{job_id}/pause")

    assert await told(db, job_id) == []


async def subscribe(db: Database, job_id: str) -> None:
    async with db.transaction() as tx:
        organization = select(Job.organization_id).where(Job.id == job_id)
        tx.add(
            WebhookEndpoint(
                id=f"wh_{job_id}",
                organization_id=(await tx.execute(organization)).scalar_one(),
                name="x",
                url="http://127.0.0.2:1/",
                event_types=[f"fine_tuning.job.{how}" for how in ("succeeded", "failed")]
                + ["fine_tuning.job.cancelled"],
                secret=b"sealed with nothing",
                secret_hint="",
            )
        )


async def told(db: Database, job_id: str) -> list[str]:
    query = select(WebhookDelivery.event_type).where(
        WebhookDelivery.endpoint_id == f"wh_{job_id}", WebhookDelivery.body.contains(job_id)
    )
    async with db.transaction() as tx:
        return list(await tx.scalars(query))


async def falls_silent(db: Database, job_id: str) -> None:
    await set_values(db, job_id, lease_until=func.now() - text("interval '1 second'"))
    async with db.transaction() as tx:
        await lease.requeue_expired(tx)


async def set_values(db: Database, job_id: str, **values: object) -> None:
    async with db.transaction() as tx:
        await tx.execute(update(Job).where(Job.id == job_id).values(**values))
