"""What a run leaves is stored once, whenever its end cuts that off."""

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.db import Database
from app.jobs import lease
from app.jobs.spec import CheckpointSaved
from worker.run import Run
from worker.rundir import COMPLETE, RunDir
from worker.uploads import end_upload, store_checkpoint, store_exports, upload

pytestmark = pytest.mark.usefixtures("empty_queue")
JOBS = "/fine_tuning/jobs"
STEP = 5
FILES = 3000  # so many take a moment to delete


@pytest.fixture
async def run(
    db: Database, http: httpx.Client, training_file: str, empty_queue: None, tmp_path: Path
) -> Run:
    """A run that has just been claimed."""
    made = http.post(JOBS, json={"model": "tiny-llama", "training_file": training_file})
    assert made.status_code == 200, made.text
    async with db.transaction() as tx:
        claim = await lease.claim(tx, "w1", free=1)
    assert claim is not None
    return Run(db, claim, RunDir(tmp_path / "attempt-1"), threading.Event())


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number in range(FILES):
        (folder / f"{number}.txt").write_text("weights")
    return folder


def export(run: Run) -> Path:
    folder = fill(run.folder.export(STEP))
    name = folder.relative_to(run.folder.path).as_posix()
    run.exports.append(CheckpointSaved(at=time.time(), step=STEP, folder=name, metrics={}))
    return folder


def checkpoint(run: Run) -> Path:
    folder = fill(run.folder.checkpoint(STEP))
    (folder / COMPLETE).touch()
    run.saved_step = STEP
    return folder


def files_in(folder: Path) -> int:
    return len(list(folder.iterdir())) if folder.exists() else 0


async def cut_off(run: Run, ready: Callable[[], bool]) -> None:
    """Let the upload go on for so long, and end it there."""
    run.uploading = asyncio.create_task(upload(run, max_bytes=1 << 30))
    while not ready():
        assert not run.uploading.done()
        await asyncio.sleep(0.001)
    await end_upload(run)


async def test_an_export_that_is_being_deleted_when_the_run_ends_is_not_stored_again(
    run: Run, http: httpx.Client
):
    folder = export(run)

    await cut_off(run, lambda: files_in(folder) < FILES)
    left = list(run.folder.exports.iterdir())
    await store_exports(run)

    assert left == [], "a thread was still at work"
    assert shown_steps(http, run) == [STEP] and run.exports == []


async def test_an_upload_that_is_cancelled_twice_leaves_no_thread_at_work(run: Run):
    """As when the hold on the job is lost: one task's end ends the others, and so does theirs."""
    folder = export(run)
    task = asyncio.create_task(upload(run, max_bytes=1 << 30))
    while files_in(folder) == FILES:
        await asyncio.sleep(0.001)

    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])

    assert list(run.folder.exports.iterdir()) == []


async def test_a_checkpoint_that_is_being_copied_when_the_run_ends_is_stored_whole(run: Run):
    folder = checkpoint(run)
    leaving = run.folder.leaving / folder.name

    await cut_off(run, lambda: files_in(leaving) > 0)

    assert await store_checkpoint(run, max_bytes=1 << 30)
    assert run.stored_step == STEP and not leaving.exists()


async def test_a_checkpoint_is_stored_once_the_worker_was_told_of_it(run: Run):
    """Else its export may be unknown still: whoever resumed from it would never make that."""
    checkpoint(run)
    run.saved_step = STEP - 1

    assert not await store_checkpoint(run, max_bytes=1 << 30)
    assert run.stored_step == 0


async def test_a_checkpoint_too_large_for_the_database_stays_here_and_the_owner_is_told(
    run: Run, http: httpx.Client
):
    checkpoint(run)

    stored = [await store_checkpoint(run, max_bytes=1000) for _ in range(2)]

    assert stored == [False, False]
    assert run.stored_step < STEP
    assert files_in(run.folder.leaving) == 0
    told = http.get(f"{JOBS}/{run.claim.job_id}/events").raise_for_status().json()["data"]
    warned = [event["message"] for event in told if "bytes, more than" in event["message"]]
    assert len(warned) == 1 and "from its first step" in warned[0]


async def test_an_export_that_an_earlier_attempt_stored_is_passed_over(
    run: Run, http: httpx.Client
):
    shutil.rmtree(export(run))

    await store_exports(run)

    assert run.exports == []
    assert shown_steps(http, run) == []


async def test_an_export_that_another_machine_went_on_from_is_not_stored_again(
    run: Run, http: httpx.Client
):
    """It stored its own, and whoever resumed there is not of this one's bits."""
    folder = export(run)
    run.stored_step = STEP + 1

    await store_exports(run)

    assert shown_steps(http, run) == [] and not folder.exists()


def shown_steps(http: httpx.Client, run: Run) -> list[int]:
    found = http.get(f"{JOBS}/{run.claim.job_id}/checkpoints").json()["data"]
    return [each["step_number"] for each in found]
