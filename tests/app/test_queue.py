"""Who is next: priority, then tenants in turn, then age; and a large job is not passed for ever."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database
from app.jobs import lease, service
from app.jobs.lease import Claim
from app.jobs.queue import PATIENCE_S
from app.jobs.schemas import CreateJob
from app.settings import ApiSettings
from tests.app.racing import SilentBell
from tests.app.records import make_file, make_organization, run
from tests.factories import PEPPER, jsonl

pytestmark = pytest.mark.usefixtures("empty_queue")
JOBS = "/fine_tuning/jobs"


class Tenant:
    """Somebody with a key and a training file."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http
        upload = {"file": ("t.jsonl", jsonl(20))}
        self.file = http.post("/files", data={"purpose": "fine-tune"}, files=upload).json()["id"]

    def submit(self, *, gpus: int = 1, priority: int = 0) -> str:
        body = {"model": "tiny-llama", "training_file": self.file, "priority": priority}
        made = self.http.post(JOBS, json=body | {"resources": {"gpus": gpus}})
        assert made.status_code == 200, made.text
        job_id: str = made.json()["id"]
        return job_id

    def queue(self, job_id: str) -> dict[str, Any]:
        shown: dict[str, Any] = self.http.get(f"{JOBS}/{job_id}").json()["queue"]
        return shown


@pytest.fixture(scope="module")
def tenant(http: httpx.Client) -> Tenant:
    return Tenant(http)


@pytest.fixture(scope="module")
def other(stranger: httpx.Client) -> Tenant:
    return Tenant(stranger)


async def claim(db: Database, *, free: int = 1, total: int | None = None) -> Claim | None:
    async with db.transaction() as tx:
        return await lease.claim(tx, "w", free=free, total=total)


async def claim_all(db: Database, *, free: int = 1) -> list[str]:
    """Claim until nothing fits any more; return the jobs in that order."""
    order = []
    while held := await claim(db, free=free):
        order.append(held.job_id)
    return order


async def let_wait(db: Database, job_id: str, seconds: float) -> None:
    past = "queued_at = now() - make_interval(secs => :seconds)"
    await run(db, f"UPDATE jobs SET {past} WHERE id = :id", id=job_id, seconds=seconds)


# turns


async def test_a_tenant_with_many_jobs_does_not_starve_one_with_few(
    db: Database, tenant: Tenant, other: Tenant
):
    many = [tenant.submit() for _ in range(5)]
    few = [other.submit() for _ in range(2)]

    order = await claim_all(db)

    assert order == [many[0], few[0], many[1], few[1], *many[2:]]


async def test_what_a_tenant_runs_already_counts(db: Database, tenant: Tenant, other: Tenant):
    running = [tenant.submit() for _ in range(2)]
    assert await claim_all(db) == running
    waits = tenant.submit()
    late = [other.submit() for _ in range(2)]

    assert await claim_all(db) == [late[0], late[1], waits]


async def test_a_turn_is_counted_in_devices_not_in_jobs(
    db: Database, tenant: Tenant, other: Tenant
):
    large = [tenant.submit(gpus=2) for _ in range(2)]
    small = [other.submit() for _ in range(4)]

    order = await claim_all(db, free=2)

    assert order == [small[0], large[0], small[1], small[2], large[1], small[3]]


async def test_of_one_tenant_the_older_job_is_first(db: Database, tenant: Tenant):
    jobs = [tenant.submit() for _ in range(4)]

    assert await claim_all(db) == jobs


# priority


async def test_priority_comes_before_turns_and_age(db: Database, tenant: Tenant, other: Tenant):
    low, high = tenant.submit(priority=-1), tenant.submit(priority=5)
    first, second = tenant.submit(), other.submit()
    higher = tenant.submit(priority=5)

    assert await claim_all(db) == [high, higher, second, first, low]


# back-fill and patience


async def test_a_smaller_job_passes_one_that_does_not_fit(
    db: Database, tenant: Tenant, other: Tenant
):
    tenant.submit(gpus=4, priority=9)
    small = other.submit()

    held = await claim(db, free=2, total=4)

    assert held is not None and held.job_id == small


async def test_nobody_passes_a_large_job_that_has_waited_for_long(db: Database, tenant: Tenant):
    large, small = tenant.submit(gpus=2), tenant.submit()
    await let_wait(db, large, PATIENCE_S + 60)

    passed = await claim(db, free=1, total=2)
    held = await claim(db, free=2, total=2)

    assert passed is None
    assert held is not None and held.job_id == large
    assert await claim_all(db) == [small]


async def test_until_then_it_is_passed(db: Database, tenant: Tenant):
    large, small = tenant.submit(gpus=2), tenant.submit()
    await let_wait(db, large, PATIENCE_S - 60)

    held = await claim(db, free=1, total=2)

    assert held is not None and held.job_id == small


async def test_a_worker_that_could_never_hold_it_passes_it(db: Database, tenant: Tenant):
    large, small = tenant.submit(gpus=4), tenant.submit()
    await let_wait(db, large, PATIENCE_S + 60)

    held = await claim(db, free=1, total=2)

    assert held is not None and held.job_id == small


async def test_who_stands_before_a_patient_job_still_goes_first(db: Database, tenant: Tenant):
    large, urgent = tenant.submit(gpus=2), tenant.submit(priority=1)
    await let_wait(db, large, PATIENCE_S + 60)

    held = await claim(db, free=1, total=2)

    assert held is not None and held.job_id == urgent


async def test_a_job_that_rests_after_a_kill_is_passed(db: Database, tenant: Tenant):
    killed, next_one = tenant.submit(), tenant.submit()
    later = "retry_at = now() + interval '1 minute'"
    await run(db, f"UPDATE jobs SET {later} WHERE id = :id", id=killed)

    assert await claim_all(db) == [next_one]


# the wire


@pytest.fixture
async def idle_worker(db: Database) -> AsyncIterator[None]:
    """A worker with two devices was heard of just now."""
    values = "('w', 'box', '{\"all\": [\"cpu\", \"cpu\"]}')"
    await run(db, f"INSERT INTO workers (id, hostname, devices) VALUES {values}")
    yield
    await run(db, "DELETE FROM workers WHERE id = 'w'")


@pytest.mark.usefixtures("idle_worker")
async def test_position_ahead_and_reason_agree_with_the_order_of_claims(
    db: Database, tenant: Tenant, other: Tenant
):
    owner = {tenant.submit(priority=number % 2): tenant for number in range(4)}
    owner |= {other.submit(): other for _ in range(2)}
    owner[tenant.submit(gpus=2)] = tenant
    shown = {job_id: each.queue(job_id) for job_id, each in owner.items()}

    order = await claim_all(db, free=2)

    places = [shown[job_id] for job_id in order]
    assert [place["position"] for place in places] == list(range(1, 8))
    assert [place["ahead"] for place in places] == list(range(7))
    assert [place["reason"] for place in places] == [
        "It is next, and starts within seconds.",
        "1 job is before it.",
        *(f"{ahead} jobs are before it." for ahead in range(2, 7)),
    ]


async def test_the_place_moves_up_as_jobs_are_claimed(db: Database, tenant: Tenant):
    _, second = tenant.submit(), tenant.submit()
    before = tenant.queue(second)["position"]

    await claim(db)

    assert (before, tenant.queue(second)["position"]) == (2, 1)


# many

MANY = 2000
COPY = """
    INSERT INTO jobs SELECT (jsonb_populate_record(j, jsonb_build_object(
        'id', 'ftjob-' || n, 'priority', n % 3, 'created_at', now() - n * interval '1 second',
        'organization_id', CASE WHEN n % 10 = 0 THEN :other ELSE organization_id END))).*
    FROM jobs j, generate_series(2, :many) n
"""


async def test_a_claim_among_very_many_reads_the_queue_a_few_times_only(own: Database):
    """Statements and rows are counted, not seconds."""
    organization, other = await make_organization(own), await make_organization(own)
    await submit_directly(own, organization)
    few = await statements_of_a_claim(own)
    await run(own, "UPDATE jobs SET status = 'queued'")
    await run(own, "UPDATE attempts SET ended_at = now()")
    await run(own, COPY, other=other, many=MANY)

    many = await statements_of_a_claim(own)

    (claiming,) = [each for each in many if each[0].startswith("WITH")]
    assert len(many) == len(few)
    assert rows_read(await plan(own, claiming)) < 20 * MANY


async def submit_directly(db: Database, organization: str) -> None:
    """Queue a job of a hub model, for a file that says it has rows."""
    file = await make_file(db, organization)
    await run(db, "UPDATE files SET rows = 24, row_format = 'chat' WHERE id = :id", id=file.id)
    body = CreateJob(model="hub/tiny", training_file=file.id)
    settings = ApiSettings(
        database_url="-", redis_url="-", hub_models="hub/tiny", key_pepper=PEPPER
    )
    async with db.transaction() as tx:
        await service.create(tx, organization, body, settings=settings, bell=SilentBell())


async def statements_of_a_claim(db: Database) -> list[tuple[str, Any]]:
    said: list[tuple[str, Any]] = []

    async def listen(tx: AsyncSession) -> None:
        connection = (await tx.connection()).sync_connection
        assert connection is not None
        event.listen(
            connection,
            "before_cursor_execute",
            lambda _conn, _cursor, statement, values, *_: said.append((statement, values)),
        )

    async with db.transaction() as tx:
        await listen(tx)
        assert await lease.claim(tx, "w", free=1)
        await tx.flush()
    return said


async def plan(db: Database, statement: tuple[str, Any]) -> dict[str, Any]:
    sql, values = statement
    async with db.transaction() as tx:
        connection = await tx.connection()
        found = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", values)
        shown: dict[str, Any] = found.scalar_one()[0]["Plan"]
    return shown


def rows_read(node: dict[str, Any]) -> float:
    """How many rows went through a plan, with those that were looked at and dropped."""
    dropped = sum(value for name, value in node.items() if name.startswith("Rows Removed"))
    rows = (node["Actual Rows"] + dropped) * node["Actual Loops"]
    return float(rows + sum(map(rows_read, node.get("Plans", []))))
