"""The processes of a job's run, and how a test holds them at a step.

On a fast machine a small run is over before what is to happen in its middle.
"""

import signal
from contextlib import suppress
from pathlib import Path

import psutil

from app.jobs.spec import StepDone
from tests.waiting import wait_until
from worker.rundir import LineTail, RunDir, parse_events


def processes_of(job_id: str) -> list[psutil.Process]:
    """What runs in a job's folder: the trainer, or its ranks and their launcher."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(job_id in part for part in process.info["cmdline"] or [])
    ]


def newest_run(data: Path, job_id: str) -> RunDir | None:
    """The folder of a job's newest attempt in a worker's data."""
    found = sorted((data / "runs" / job_id).glob("attempt-*"))
    return RunDir(found[-1]) if found else None


def steps_taken(data: Path, job_id: str) -> int:
    """The optimizer steps that the newest attempt has told its folder of."""
    run = newest_run(data, job_id)
    if run is None:
        return 0
    events = parse_events(LineTail(run.events).read())
    return sum(isinstance(event, StepDone) for event in events)


def hold(data: Path, job_id: str, *, after_step: int) -> None:
    """Stop a run once it took a step; it must not be over by then."""
    wait_until(lambda: steps_taken(data, job_id) >= after_step, timeout_s=120)
    _signal(job_id, signal.SIGSTOP)
    assert processes_of(job_id), "the run was over before it could be held"


def let_go(job_id: str) -> None:
    _signal(job_id, signal.SIGCONT)


def let_go_once_asked_to_stop(job_id: str) -> None:
    """Let a run go that is held, when the worker has asked it to stop and save."""
    wait_until(lambda: any(map(_is_asked_to_stop, processes_of(job_id))), timeout_s=60)
    let_go(job_id)


def _signal(job_id: str, number: signal.Signals) -> None:
    for process in processes_of(job_id):
        with suppress(psutil.NoSuchProcess):  # it ended this moment
            process.send_signal(number)


def _is_asked_to_stop(process: psutil.Process) -> bool:
    """Whether SIGTERM waits for a process that is held: /proc/[pid]/status of proc(5)."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it ended this moment
        return False
    status = dict(line.split(":\t") for line in lines)
    return bool(int(status["ShdPnd"], 16) & 1 << signal.SIGTERM - 1)
