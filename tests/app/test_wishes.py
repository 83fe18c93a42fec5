"""What the owner of a running job asks for is done, also when the run ends at that moment."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, connected
from app.jobs import lease, service
from app.jobs.lease import Claim, Failure
from app.settings import ApiSettings
from app.tables import Job
from tests.app.racing import Operation, SilentBell, commit, overtake
from tests.app.records import run

pytestmark = pytest.mark.usefixtures("empty_queue")
JOBS = "/fine_tuning/jobs"


async def give_back(tx: AsyncSession, held: Claim) -> None:
    await lease.give_back(tx, held, "The worker shut down.")


async def lose(tx: AsyncSession, held: Claim) -> None:
    await lease.lose(tx, held, Failure("killed", "The run was killed."))


async def sweep(tx: AsyncSession, held: Claim) -> None:
    await lease.requeue_expired(tx)


LETTING_GO = [give_back, lose, lease.pause]
WISHES = {
    "cancel": service.cancel,
    "pause": service.pause,
    "resume": partial(service.resume, bell=SilentBell()),
}


@pytest.fixture
async def db(settings: ApiSettings) -> AsyncIterator[Database]:
    async with connected(settings.database_url, pool_size=3) as database:
        yield database


@pytest.fixture
async def held(http: httpx.Client, training_file: str, db: Database, empty_queue: None) -> Claim:
    http.post(JOBS, json={"model": "tiny-llama", "training_file": training_file})
    found = await commit(db, lambda tx: lease.claim(tx, "w", free=1))
    assert found is not None
    return found


def wish(held: Claim, verb: str) -> Operation:
    async def does(tx: AsyncSession) -> Any:
        return await WISHES[verb](tx, held.organization_id, held.job_id)

    return does


async def status(db: Database, held: Claim) -> str:
    return await run(db, "SELECT status FROM jobs WHERE id = :id", id=held.job_id)


@pytest.mark.parametrize("let_go", [*LETTING_GO, sweep])
@pytest.mark.parametrize(("verb", "then"), [("cancel", "cancelled"), ("pause", "paused")])
async def test_a_wish_that_meets_the_end_of_a_run_is_not_lost(
    db: Database, held: Claim, let_go: Any, verb: str, then: str
):
    await run(db, "UPDATE jobs SET lease_until = now() WHERE id = :id", id=held.job_id)

    told = await overtake(db, lambda tx: let_go(tx, held), wish(held, verb))

    assert isinstance(told, Job) and told.status == then
    assert await status(db, held) == then


async def test_a_job_that_is_resumed_while_it_is_being_paused_waits_again(
    db: Database, held: Claim
):
    await commit(db, wish(held, "pause"))

    await overtake(db, lambda tx: lease.pause(tx, held), wish(held, "resume"))

    assert await status(db, held) == "queued"


@pytest.mark.parametrize("let_go", LETTING_GO)
async def test_a_cancel_that_a_run_did_not_see_any_more_ends_the_job(
    db: Database, held: Claim, let_go: Any
):
    await commit(db, wish(held, "pause"))
    await commit(db, wish(held, "cancel"))

    await commit(db, lambda tx: let_go(tx, held))

    assert await status(db, held) == "cancelled"


@pytest.mark.parametrize("let_go", LETTING_GO)
async def test_a_pause_that_a_run_did_not_see_any_more_holds_the_job_until_it_is_resumed(
    db: Database, held: Claim, let_go: Any
):
    await commit(db, wish(held, "pause"))

    await commit(db, lambda tx: let_go(tx, held))
    paused = await status(db, held)
    await commit(db, wish(held, "resume"))
    await run(db, "UPDATE jobs SET retry_at = NULL WHERE id = :id", id=held.job_id)
    again = await commit(db, lambda tx: lease.claim(tx, "w", free=1))

    assert paused == "paused"
    assert await commit(db, lambda tx: lease.renew(tx, again)) is None


async def test_a_paused_job_that_is_cancelled_says_so(
    db: Database, http: httpx.Client, held: Claim
):
    await commit(db, wish(held, "pause"))
    await commit(db, lambda tx: lease.pause(tx, held))

    await commit(db, wish(held, "cancel"))

    said = http.get(f"{JOBS}/{held.job_id}/events").json()["data"][0]["message"]
    assert said == "The job was cancelled while it was paused"
