"""What an attempt left on this machine is taken over by the next, or removed."""

import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from app.db import Database
from app.jobs.spec import CheckpointSaved, StepDone
from worker import leftovers
from worker.rundir import COMPLETE, RunDir, parse_events


def attempt(job: Path, number: int, *, checkpoints: tuple[int, ...] = ()) -> RunDir:
    run = RunDir(job / f"attempt-{number}")
    for step in checkpoints:
        run.checkpoint(step).mkdir(parents=True)
        (run.checkpoint(step) / COMPLETE).touch()
    run.path.mkdir(parents=True, exist_ok=True)
    return run


def test_the_newest_complete_checkpoint_of_earlier_attempts_is_taken_over(tmp_path: Path):
    first, second = attempt(tmp_path, 1, checkpoints=(4, 8)), attempt(tmp_path, 2, checkpoints=(6,))
    (first.checkpoint(12)).mkdir()  # cut short: not complete
    third = attempt(tmp_path, 10)

    leftovers.adopt(third)
    leftovers.remove_earlier(third)

    assert third.latest_checkpoint() == third.checkpoint(8)
    assert not first.path.exists() and not second.path.exists()


def test_what_earlier_attempts_said_is_returned(tmp_path: Path):
    first = attempt(tmp_path, 1)
    said = StepDone(at=1.0, step=3, epoch=0.5, metrics={"train_loss": 1.0})
    first.append_event(said)

    assert leftovers.adopt(attempt(tmp_path, 2)) == [said]


def test_exports_that_nobody_stored_come_with_the_checkpoint_after_them(tmp_path: Path):
    first = attempt(tmp_path, 1, checkpoints=(8,))
    for step in (2, 4, 6, 8, 10):
        save_export(first, step)
    shutil.rmtree(first.export(4))  # stored
    shutil.rmtree(first.export(8))
    first.export(6).rename(first.export(6).with_suffix(".gone"))  # stored too
    second = attempt(tmp_path, 2)

    leftovers.adopt(second)

    said = parse_events(second.events.read_bytes())
    assert [event.step for event in said if isinstance(event, CheckpointSaved)] == [2, 8]
    assert list(second.exports.iterdir()) == [second.export(2)]


def test_a_supervisor_that_wakes_late_takes_nothing_of_its_successor(tmp_path: Path):
    late, successor = attempt(tmp_path, 1), attempt(tmp_path, 2, checkpoints=(4,))

    leftovers.adopt(late)
    leftovers.remove_earlier(late)

    assert late.latest_checkpoint() is None and successor.latest_checkpoint() is not None


def test_whoever_dies_while_taking_over_leaves_as_much_to_the_next(tmp_path: Path):
    first = attempt(tmp_path, 1, checkpoints=(8,))
    save_export(first, 8)
    told = leftovers.adopt(attempt(tmp_path, 2))
    third = attempt(tmp_path, 3)

    assert leftovers.adopt(third)[: len(told)] == told
    assert third.latest_checkpoint() == third.checkpoint(8) and third.export(8).exists()
    assert third.events.read_bytes() == first.events.read_bytes()


def save_export(run: RunDir, step: int) -> None:
    run.export(step).mkdir(parents=True)
    name = run.export(step).relative_to(run.path).as_posix()
    run.append_event(CheckpointSaved(at=1.0, step=step, folder=name, metrics={}))


def test_a_run_whose_supervisor_hangs_is_ended_before_its_folder_is_taken(tmp_path: Path):
    first = attempt(tmp_path, 1)
    command = [sys.executable, "-c", "import time; time.sleep(100)", str(first.path)]
    with subprocess.Popen(command) as orphan:
        leftovers.adopt(attempt(tmp_path, 2))

        assert not psutil.pid_exists(orphan.pid)


def test_what_an_environment_started_is_ended_in_whatever_session_it_is(tmp_path: Path):
    first, tenth = attempt(tmp_path, 1), attempt(tmp_path, 10)
    command = [sys.executable, "-c", "import time; time.sleep(100)"]
    theirs, of_another = (
        subprocess.Popen(command, env={"TMPDIR": str(run.path / "rooms")}, start_new_session=True)
        for run in (first, tenth)
    )
    with theirs, of_another:
        leftovers.end_processes(first.path)

        assert not psutil.pid_exists(theirs.pid) and of_another.poll() is None
        of_another.kill()


@pytest.mark.usefixtures("empty_queue")
async def test_folders_of_jobs_that_are_over_are_removed(db: Database, tmp_path: Path):
    attempt(tmp_path / "ftjob-unknown", 1)

    await leftovers.sweep(db, tmp_path)

    assert not list(tmp_path.iterdir())


async def test_a_machine_that_never_ran_anything_has_nothing_to_sweep(db: Database, tmp_path: Path):
    await leftovers.sweep(db, tmp_path / "not there")
