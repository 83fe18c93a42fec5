"""What attempts leave on this machine when nobody could clean up: taken over, or removed."""

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path

import psutil
import structlog
from sqlalchemy import select

from app.db import Database
from app.jobs.spec import TrainEvent
from app.jobs.states import TERMINAL
from app.tables import Job
from worker.rundir import LineTail, RunDir, parse_events, step_of

log = structlog.get_logger()


def adopt(folder: RunDir) -> list[TrainEvent]:
    """Take over the newest checkpoint of earlier attempts at a job, and return what they said.

    Their processes are ended first: of a supervisor that hangs, the run may live.
    """
    earlier = sorted(
        (each for each in folder.path.parent.iterdir() if each != folder.path), key=step_of
    )
    said: list[TrainEvent] = []
    for path in earlier:
        end_processes(path)
        left = RunDir(path)
        said += parse_events(LineTail(left.events).read(limit=1 << 30))
        found, ours = left.latest_checkpoint(), folder.latest_checkpoint()
        if found is not None and (ours is None or step_of(ours) < step_of(found)):
            folder.checkpoints.mkdir(exist_ok=True)
            found.rename(folder.checkpoints / found.name)
        shutil.rmtree(path)
    return said


def end_processes(folder: Path) -> None:
    """Kill whatever was started for a run folder, however deep below its run and by whom.

    It stands in a run's command line; below it, environments and what they start have their TMPDIR.
    """
    for process in psutil.process_iter(["cmdline", "environ"]):
        writes_to = (process.info["environ"] or {}).get("TMPDIR", "")
        is_run = str(folder) in (process.info["cmdline"] or ())
        if is_run or Path(writes_to).is_relative_to(folder):
            log.warning("run.orphan_killed", pid=process.pid, folder=str(folder))
            with suppress(
                psutil.NoSuchProcess, psutil.AccessDenied
            ):  # another user's is none of ours
                process.kill()
                process.wait(timeout=10)


def remove(folder: Path) -> None:
    """Delete a run folder, and its job's when that was the last one."""
    shutil.rmtree(folder)
    with suppress(OSError):  # not empty: an earlier attempt's is there
        folder.parent.rmdir()


async def sweep(db: Database, runs: Path) -> None:
    """Delete the folders of jobs that are over, or not known any more."""
    found = await asyncio.to_thread(_folders, runs)
    if not found:
        return
    async with db.transaction() as tx:
        query = select(Job.id).where(Job.id.in_(found), Job.status.not_in(TERMINAL))
        live = set(await tx.scalars(query))
    for job_id in found.keys() - live:
        log.info("run.left_over_removed", job_id=job_id)
        await asyncio.to_thread(_remove_job, found[job_id])


def _remove_job(folder: Path) -> None:
    end_processes(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _folders(runs: Path) -> dict[str, Path]:
    return {path.name: path for path in runs.iterdir()} if runs.exists() else {}
