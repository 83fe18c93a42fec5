"""What a run's end means: exit code and last words → succeeded, failed, cancelled, resume."""

import signal
from dataclasses import dataclass

from app.jobs.lease import Failure
from app.jobs.spec import Failed, Finished, Stopped, TrainEvent


@dataclass(frozen=True)
class Succeeded:
    finished: Finished


@dataclass(frozen=True)
class FailedRun:
    failure: Failure


@dataclass(frozen=True)
class Cancelled:
    pass


@dataclass(frozen=True)
class Interrupted:
    """Stopped by us, not by its owner: another attempt carries on."""


@dataclass(frozen=True)
class Paused:
    """Stopped by its owner for now: another attempt carries on when they say so."""


@dataclass(frozen=True)
class Lost:
    """Ended by what another try may not meet: it is tried again, up to the cap."""

    failure: Failure


Outcome = Succeeded | FailedRun | Cancelled | Interrupted | Paused | Lost

DISK_FULL = Failure("disk_full", "The worker's disk is full; free space under its data folder.")
BUDGET_EXCEEDED = Failure(
    "budget_exceeded",
    "The budget's time was over before the run could deliver an adapter. Raise"
    " budget.max_duration_s; what checkpoints there are stay.",
    "budget.max_duration_s",
)
MEMORY_KNOB = "training.micro_batch_size"
# Failures of the machine, not of the job.
AGAIN = frozenset({"disk_full", "rank_lost"})


def outcome(
    exit_code: int,
    last: TrainEvent | None,
    *,
    stop: str | None,
    out_of_memory: str | None = None,
    disk_full: bool = False,
) -> Outcome:
    """Judge a run that is over.

    `stop` is what it was asked: cancel, pause, shutdown, budget or nothing; `out_of_memory` is what
    to tell the owner when the system killed something for memory meanwhile. On a full disk a run
    may not even be able to say so.
    """
    match last:
        case Finished() if exit_code == 0:
            return Succeeded(last)
        case _ if stop == "cancel":
            return Cancelled()
        case Failed():
            failure = Failure(last.code, last.message, last.param)
            return Lost(failure) if last.code in AGAIN else FailedRun(failure)
        case _ if stop == "budget":
            return FailedRun(BUDGET_EXCEEDED)
        case _ if stop is not None or isinstance(last, Stopped):
            return Paused() if stop == "pause" else Interrupted()
    if exit_code == -signal.SIGKILL and out_of_memory is not None:
        return Lost(Failure("out_of_memory", out_of_memory, MEMORY_KNOB))
    return _without_a_word(exit_code, disk_full=disk_full)


def _without_a_word(exit_code: int, *, disk_full: bool) -> Outcome:
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        message = f"The run was killed by {name}; the job's logs show how far it came."
        return Lost(Failure("killed", message))
    if exit_code and disk_full:
        return Lost(DISK_FULL)
    message = (
        f"The run ended without a word (exit code {exit_code}); the job's logs show its last lines."
    )
    return FailedRun(Failure("internal_error", message))
