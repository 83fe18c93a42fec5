"""What is over is deleted, and nothing else."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from app.db import Database
from app.errors import FileInUse
from app.files import service as files
from app.jobs.states import TERMINAL, JobStatus
from app.sweep import Swept, sweep_storage
from app.tables import Blob, File, Job, ResumeState, Worker
from tests.app.records import (
    exists,
    make_file,
    make_job,
    make_organization,
    make_resume_state,
    new_job,
    run,
    state_of,
)

LIVE = sorted(set(JobStatus) - TERMINAL)


@pytest.fixture
async def owner(own: Database) -> str:
    return await make_organization(own)


async def sweep(db: Database, *, files: int | None = None, resume: int = 30) -> Swept:
    return await sweep_storage(db, file_retention_days=files, resume_retention_days=resume)


async def age(db: Database, file: File, *, days: float) -> None:
    when = datetime.now(UTC) - timedelta(days=days)
    await run(db, "UPDATE files SET created_at = :at WHERE id = :id", at=when, id=file.id)


async def expire(db: Database, file: File, *, in_s: float) -> None:
    when = datetime.now(UTC) + timedelta(seconds=in_s)
    await run(db, "UPDATE files SET expires_at = :at WHERE id = :id", at=when, id=file.id)


async def test_a_file_goes_when_it_has_expired_and_its_bytes_with_it(own: Database, owner: str):
    over, still = await make_file(own, owner), await make_file(own, owner)
    await expire(own, over, in_s=-1)
    await expire(own, still, in_s=60)

    swept = await sweep(own)

    assert (swept.files, swept.blobs) == (1, 1)
    assert not await exists(own, File, over.id) and not await exists(own, Blob, over.blob_id)
    assert await exists(own, File, still.id) and await state_of(own, still.blob_id) == "ready"


async def test_a_file_goes_after_the_retention_if_there_is_one(own: Database, owner: str):
    old, young = await make_file(own, owner), await make_file(own, owner)
    await age(own, old, days=7.1)
    await age(own, young, days=6.9)

    kept = await sweep(own, files=None)
    swept = await sweep(own, files=7)

    assert (kept.files, swept.files) == (0, 1)
    assert not await exists(own, File, old.id) and await exists(own, File, young.id)


@pytest.mark.parametrize("status", LIVE)
@pytest.mark.parametrize("role", ["training_file_id", "validation_file_id"])
async def test_a_file_stays_while_a_live_job_reads_it(
    own: Database, owner: str, status: JobStatus, role: str
):
    file, other = await make_file(own, owner), await make_file(own, owner)
    job_id = await make_job(own, owner, other.id, status)
    await run(own, f"UPDATE jobs SET {role} = :file WHERE id = :id", file=file.id, id=job_id)
    await expire(own, file, in_s=-1)

    during = await sweep(own)
    await run(own, "UPDATE jobs SET status = 'cancelled' WHERE id = :id", id=job_id)
    after = await sweep(own)

    assert (during.files, after.files) == (0, 1)


async def test_a_job_forgets_a_result_file_that_went(own: Database, owner: str):
    data, result = (
        await make_file(own, owner),
        await make_file(own, owner, purpose=files.RESULTS_PURPOSE),
    )
    job_id = await make_job(
        own, owner, data.id, JobStatus.SUCCEEDED, result_file_id=result.id, fine_tuned_model="ft:x"
    )
    await age(own, result, days=8)

    await sweep(own, files=7)

    async with own.transaction() as tx:
        job = await tx.get_one(Job, job_id)
    assert job.result_file_id is None and not await exists(own, File, result.id)


async def test_many_files_go_in_one_sweep(
    own: Database, owner: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("app.sweep.ROWS_PER_TRANSACTION", 2)
    for _ in range(5):
        await expire(own, await make_file(own, owner), in_s=-1)

    assert (await sweep(own)).files == 5


@pytest.mark.parametrize("status", sorted(TERMINAL))
async def test_resume_states_go_when_their_job_is_over(
    own: Database, owner: str, status: JobStatus
):
    file = await make_file(own, owner)
    job_id = await make_job(own, owner, file.id, status)
    blob_ids = [await make_resume_state(own, owner, job_id, step) for step in (5, 10)]

    swept = await sweep(own)

    assert (swept.resume_states, swept.blobs) == (2, 2)
    assert [await state_of(own, blob_id) for blob_id in blob_ids] == [None, None]


@pytest.mark.parametrize(
    ("status", "days", "gone"),
    [
        (JobStatus.PAUSED, 29, False),
        (JobStatus.PAUSED, 31, True),
        (JobStatus.QUEUED, 31, False),
        (JobStatus.RUNNING, 31, False),
    ],
)
async def test_a_live_jobs_resume_state_stays_unless_it_was_paused_for_too_long(
    own: Database, owner: str, status: JobStatus, days: int, gone: bool
):
    file = await make_file(own, owner)
    job_id = await make_job(own, owner, file.id, status)
    await make_resume_state(own, owner, job_id, 5)
    when = datetime.now(UTC) - timedelta(days=days)
    await run(
        own, "UPDATE resume_states SET created_at = :at WHERE job_id = :id", at=when, id=job_id
    )

    await sweep(own, resume=30)

    assert await exists(own, ResumeState, (job_id, 5)) is not gone


async def test_workers_are_forgotten_after_a_day(own: Database):
    async with own.transaction() as tx:
        for name, hours in (("gone", 25), ("here", 23)):
            seen = datetime.now(UTC) - timedelta(hours=hours)
            tx.add(Worker(id=name, hostname=name, devices={"all": ["cpu"]}, seen_at=seen))

    swept = await sweep(own)

    assert swept.workers == 1
    assert not await exists(own, Worker, "gone") and await exists(own, Worker, "here")


async def test_sweeps_at_once_delete_each_thing_once(own: Database, owner: str):
    for _ in range(10):
        await expire(own, await make_file(own, owner), in_s=-1)
        job_id = await make_job(own, owner, "file-gone", JobStatus.FAILED)
        await make_resume_state(own, owner, job_id, 1)

    swept = await asyncio.gather(*(sweep(own) for _ in range(4)))

    assert sum(one.files for one in swept) == 10
    assert sum(one.resume_states for one in swept) == 10
    await sweep(own)
    assert await run(own, "SELECT count(*) FROM blobs WHERE state = 'deleting'") == 0


async def test_a_file_that_a_new_job_is_about_to_read_is_not_deleted_under_it(
    own: Database, owner: str
):
    file = await make_file(own, owner)
    await expire(own, file, in_s=-1)
    async with own.transaction() as tx:
        await files.get(tx, owner, file.id, hold=True)

        swept = await sweep(own)
        deleting = asyncio.create_task(delete(own, owner, file.id))
        await asyncio.sleep(0.2)
        tx.add(new_job(owner, file.id, JobStatus.QUEUED))

    assert swept.files == 0
    with pytest.raises(FileInUse):
        await deleting


async def delete(db: Database, owner: str, file_id: str) -> None:
    async with db.transaction() as tx:
        await files.delete(tx, owner, file_id)
