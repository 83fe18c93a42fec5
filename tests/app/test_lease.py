"""A worker's hold on a job: nobody else gets it, and nobody writes who lost it."""

import asyncio
import math
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import cast, text, update
from sqlalchemy.dialects.postgresql import JSONB

from app.db import Database
from app.jobs import lease
from app.jobs.lease import (
    CANCEL_SILENCE_S,
    LEASE_S,
    MAX_LOST_ATTEMPTS,
    Claim,
    Failure,
    LeaseLostError,
)
from app.jobs.spec import EvalDone, Started, StepDone
from app.tables import Job

pytestmark = pytest.mark.usefixtures("empty_queue")
JOBS = "/fine_tuning/jobs"


@pytest.fixture
def job_id(http: httpx.Client, training_file: str, empty_queue: None) -> str:
    body = {"model": "tiny-llama", "training_file": training_file}
    found: str = http.post(JOBS, json=body).json()["id"]
    return found


async def claim(db: Database, worker: str = "w1") -> Claim | None:
    async with db.transaction() as tx:
        return await lease.claim(tx, worker, free=1)


async def claimed(db: Database) -> Claim:
    held = await claim(db)
    assert held is not None
    return held


async def expire(db: Database, job_id: str) -> None:
    async with db.transaction() as tx:
        past = text("now() - interval '1 second'")
        await tx.execute(update(Job).where(Job.id == job_id).values(lease_until=past))


async def sweep(db: Database) -> list[str]:
    async with db.transaction() as tx:
        return await lease.requeue_expired(tx)


async def test_a_suffix_stands_in_the_models_name_as_a_word(db: Database, job_id: str):
    parts = {
        None: "",
        "bot-2.1": "bot-2.1",
        "my model": "my-model",
        "../../etc": "etc",
        "a:b": "a-b",
        "поезд 🚂!": "поезд",
        "!": "",
    }
    held = await claimed(db)

    names = {suffix: lease.model_name(replace(held, suffix=suffix)) for suffix in parts}

    assert {suffix: name.split(":")[3] for suffix, name in names.items()} == parts
    assert {name.split(":")[4] for name in names.values()} == {job_id[-8:]}


async def test_a_job_that_a_worker_cannot_read_stands_in_nobodys_way(
    db: Database, http: httpx.Client, training_file: str, job_id: str
):
    """As when the API is of a newer version than some worker."""
    body = {"model": "tiny-llama", "training_file": training_file}
    behind: str = http.post(JOBS, json=body).json()["id"]
    newer = Job.spec.op("||")(cast({"of_tomorrow": 1}, JSONB))
    await respecify(db, job_id, newer)

    held = await claimed(db)
    await respecify(db, job_id, Job.spec.op("-")("of_tomorrow"))  # the API lists it elsewhere

    assert held.job_id == behind
    async with db.transaction() as tx:
        job = await tx.get_one(Job, job_id)
        assert (job.status, job.attempt, job.started_at) == ("queued", 0, None)
    assert http.get(f"{JOBS}/{job_id}/attempts").json()["data"] == []


async def respecify(db: Database, job_id: str, spec: Any) -> None:
    async with db.transaction() as tx:
        await tx.execute(update(Job).where(Job.id == job_id).values(spec=spec))


async def test_the_next_attempt_learns_what_was_told_of_the_last_step(db: Database, job_id: str):
    held = await claimed(db)
    told = []
    async with db.transaction() as tx:
        for event in (
            StepDone(at=1.0, step=4, epoch=1.0, metrics={"train_loss": 1.0}),
            EvalDone(at=1.0, step=4, metrics={"valid_loss": 1.0}),
            StepDone(at=1.0, step=5, epoch=1.0, metrics={"train_loss": 1.0}),
        ):
            await lease.record(tx, held, [event])
            told.append(await lease.told_step(tx, held))

    assert told == [(4, False), (4, True), (5, False)]


async def test_of_many_workers_one_gets_the_job(db: Database, job_id: str):
    claims = await asyncio.gather(*(claim(db, f"w{number}") for number in range(8)))

    assert [held.job_id for held in claims if held] == [job_id]


async def test_jobs_are_taken_in_order(db: Database, http: httpx.Client, training_file: str):
    body = {"model": "tiny-llama", "training_file": training_file}
    ids = [http.post(JOBS, json=body).json()["id"] for _ in range(3)]

    assert [(await claimed(db)).job_id for _ in ids] == ids


async def test_a_second_delivery_finds_nothing(db: Database, job_id: str):
    await claimed(db)

    assert await claim(db) is None


async def test_a_silent_workers_job_waits_again_and_its_late_write_is_refused(
    db: Database, job_id: str
):
    old = await claimed(db)
    await expire(db, job_id)

    assert await sweep(db) == [job_id]
    new = await claimed(db)

    assert new.attempt == old.attempt + 1
    with pytest.raises(LeaseLostError):
        async with db.transaction() as tx:
            await lease.renew(tx, old)
    with pytest.raises(LeaseLostError):
        async with db.transaction() as tx:
            await lease.fail(tx, old, Failure("x", "late"))


async def test_two_sweeps_at_once_requeue_once(db: Database, job_id: str):
    await claimed(db)
    await expire(db, job_id)

    both = await asyncio.gather(sweep(db), sweep(db))

    assert sorted(map(len, both)) == [0, 1]


async def test_a_job_that_kills_its_worker_every_time_is_failed(
    db: Database, http: httpx.Client, job_id: str
):
    for _ in range(MAX_LOST_ATTEMPTS):
        await claimed(db)
        await expire(db, job_id)
        await sweep(db)

    job = http.get(f"{JOBS}/{job_id}").json()
    assert (job["status"], job["error"]["code"]) == ("failed", "poison")


async def test_a_shutdown_does_not_count_towards_the_cap(db: Database, job_id: str):
    for _ in range(MAX_LOST_ATTEMPTS + 1):
        held = await claimed(db)
        async with db.transaction() as tx:
            await lease.give_back(tx, held, "bye")

    assert await claimed(db)


async def test_every_try_at_a_job_is_listed(db: Database, http: httpx.Client, job_id: str):
    lost = await claimed(db)
    await expire(db, job_id)
    await sweep(db)
    killed = await claimed(db)
    async with db.transaction() as tx:
        await lease.record(
            tx, killed, [StepDone(at=time.time(), step=3, epoch=0.1, metrics={"train_loss": 1.0})]
        )
        await lease.lose(tx, killed, Failure("killed", "The run was killed by SIGKILL."))

    first, second = http.get(f"{JOBS}/{job_id}/attempts").json()["data"]

    assert (first["number"], first["outcome"]) == (lost.attempt, "lost")
    assert (second["outcome"], second["last_step"]) == ("killed", 3)
    assert second["worker"] == "w1" and second["reason"] == "The run was killed by SIGKILL."
    assert second["started_at"] <= second["ended_at"]


async def test_a_strangers_attempts_are_not_there(
    db: Database, stranger: httpx.Client, job_id: str
):
    assert stranger.get(f"{JOBS}/{job_id}/attempts").status_code == 404


async def test_a_killed_run_waits_before_it_is_tried_again(
    db: Database, http: httpx.Client, job_id: str
):
    held = await claimed(db)
    async with db.transaction() as tx:
        await lease.lose(tx, held, Failure("killed", "The run was killed by SIGKILL."))

    assert await claim(db) is None
    assert "tried again at" in http.get(f"{JOBS}/{job_id}").json()["queue"]["reason"]


async def test_a_run_that_is_killed_every_time_fails_with_its_own_reason(
    db: Database, http: httpx.Client, job_id: str
):
    for _ in range(MAX_LOST_ATTEMPTS):
        held = await claimed(db)
        async with db.transaction() as tx:
            await lease.lose(tx, held, Failure("out_of_memory", "Lower micro_batch_size."))
            await tx.execute(update(Job).where(Job.id == job_id).values(retry_at=None))

    error = http.get(f"{JOBS}/{job_id}").json()["error"]
    assert error["code"] == "out_of_memory"


async def test_a_cancel_does_not_wait_for_the_lease_of_a_silent_worker(
    db: Database, http: httpx.Client, job_id: str
):
    await claimed(db)
    http.post(f"{JOBS}/{job_id}/cancel")
    async with db.transaction() as tx:
        heard = text(f"now() + interval '{LEASE_S - CANCEL_SILENCE_S - 1} seconds'")
        await tx.execute(update(Job).where(Job.id == job_id).values(lease_until=heard))

    await sweep(db)

    assert http.get(f"{JOBS}/{job_id}").json()["status"] == "cancelled"


async def test_cancelling_a_running_job_reaches_its_worker(
    db: Database, http: httpx.Client, job_id: str
):
    held = await claimed(db)

    http.post(f"{JOBS}/{job_id}/cancel")
    async with db.transaction() as tx:
        stop = await lease.renew(tx, held)
        await lease.cancel(tx, held)

    assert stop == "cancel"
    assert http.get(f"{JOBS}/{job_id}").json()["status"] == "cancelled"


async def test_what_a_run_says_is_shown(db: Database, http: httpx.Client, job_id: str):
    held = await claimed(db)
    now = time.time()
    said = [
        Started(
            at=now,
            total_steps=15,
            first_step=1,
            trainable_parameters=10,
            total_parameters=100,
            train_rows=20,
            device="cpu",
            precision="fp32",
        ),
        *(
            StepDone(at=now, step=step, epoch=0.1, metrics={"train_loss": 1.0 / step})
            for step in range(1, 10)
        ),
        StepDone(at=now, step=10, epoch=0.5, metrics={"train_loss": math.nan}),
        EvalDone(at=now, step=10, metrics={"valid_loss": 0.5}),
    ]

    async with db.transaction() as tx:
        await lease.renew(tx, held)
        await lease.record(tx, held, said)

    job = http.get(f"{JOBS}/{job_id}").json()
    metrics = {
        series["name"]: series for series in http.get(f"{JOBS}/{job_id}/metrics").json()["data"]
    }
    events = http.get(f"{JOBS}/{job_id}/events").json()["data"]
    assert job["progress"] == {"step": 10, "total_steps": 15}
    assert metrics["train_loss"]["points"][1] == [2, 0.5]
    assert metrics["train_loss"]["points"][-1] == [10, "NaN"]
    assert metrics["valid_loss"]["points"] == [[10, 0.5]]
    assert events[0]["message"] == "Step 10: valid_loss=0.5000"
    assert events[1]["data"]["train_loss"] == "nan"


async def test_buckets_keep_the_spike(db: Database, http: httpx.Client, job_id: str):
    held = await claimed(db)
    steps = [
        StepDone(
            at=time.time(), step=step, epoch=0, metrics={"train_loss": 99.0 if step == 37 else 1.0}
        )
        for step in range(1, 101)
    ]
    async with db.transaction() as tx:
        await lease.record(tx, held, steps)

    query = {"name": "train_loss", "agg": "minmax", "points": 10}
    series = http.get(f"{JOBS}/{job_id}/metrics", params=query).json()["data"][0]

    assert series["agg"] == "minmax" and len(series["points"]) == 10
    assert [31, 1.0, 99.0, pytest.approx(10.8)] == series["points"][3]
