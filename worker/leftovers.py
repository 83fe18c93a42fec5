"""What attempts leave on this machine when nobody could clean up: taken over, or removed."""

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import structlog
from sqlalchemy import select

from app.db import Database
from app.jobs.spec import CheckpointSaved, TrainEvent
from app.jobs.states import TERMINAL
from app.tables import Job
from worker.rundir import EXPORT, LineTail, RunDir, parse_events, step_of

log = structlog.get_logger()


def adopt(folder: RunDir) -> list[TrainEvent]:
    """Take over the newest checkpoint of earlier attempts at a job, and the exports up to there.

    Returns what the attempts said. Their processes are ended first: of a supervisor that hangs, the
    run may live. Whoever is killed in here, or before `remove_earlier`, leaves as much to the next
    attempt.
    """
    earlier = [RunDir(path) for path in _earlier(folder)]
    said: list[TrainEvent] = []
    for left in earlier:
        end_processes(left.path)
        said += parse_events(LineTail(left.events).read(limit=1 << 30))
        found, ours = left.latest_checkpoint(), folder.latest_checkpoint()
        if found is not None and (ours is None or step_of(ours) < step_of(found)):
            folder.checkpoints.mkdir(exist_ok=True)
            found.rename(folder.checkpoints / found.name)
    if (taken := folder.latest_checkpoint()) is not None:
        saved = {event.step: event for event in said if isinstance(event, CheckpointSaved)}
        _adopt_exports(folder, earlier, saved, upto=step_of(taken))
    return said


def _adopt_exports(
    folder: RunDir, earlier: Sequence[RunDir], saved: Mapping[int, CheckpointSaved], *, upto: int
) -> None:
    """Take over the exports that nobody stored: whoever resumes from a step makes none before it.

    What was saved is said again, for it to be stored, and the checkpoint after it.
    """
    for left in earlier:
        for export in left.exports.glob(f"{EXPORT}*[0-9]"):
            target = folder.exports / export.name
            if step_of(export) <= upto and not target.exists():
                target.parent.mkdir(exist_ok=True)
                export.rename(target)
    for step, event in sorted(saved.items()):
        if step == upto or (step < upto and folder.export(step).exists()):
            folder.append_event(event)


def remove_earlier(folder: RunDir) -> None:
    """Delete what earlier attempts at a job left."""
    for path in _earlier(folder):
        RunDir(path).remove()


def _earlier(folder: RunDir) -> list[Path]:
    """Return the folders of earlier attempts, none of a later one: this one may have been lost."""
    own, all_of_them = step_of(folder.path), folder.path.parent.iterdir()
    return sorted((each for each in all_of_them if step_of(each) < own), key=step_of)


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


def remove(folder: RunDir) -> None:
    """Delete a run folder, if it was made, and its job's when that was the last one."""
    if folder.path.exists():
        folder.remove()
        with suppress(OSError):  # not empty: an earlier attempt's is there
            folder.path.parent.rmdir()


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
