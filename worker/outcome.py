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


Outcome = Succeeded | FailedRun | Cancelled | Interrupted | Paused

KILLED = Failure(
    "killed",
    "The system killed the run (SIGKILL), most often because the machine ran out of memory. Lower"
    " training.micro_batch_size or training.max_length, or set training.gradient_checkpointing.",
)


def outcome(exit_code: int, last: TrainEvent | None, *, stop: str | None) -> Outcome:
    """Judge a run that is over; `stop` is what it was asked: cancel, pause, shutdown or nothing."""
    match last:
        case Finished() if exit_code == 0:
            return Succeeded(last)
        case _ if stop == "cancel":
            return Cancelled()
        case Failed():
            return FailedRun(Failure(last.code, last.message, last.param))
        case _ if stop is not None or isinstance(last, Stopped):
            return Paused() if stop == "pause" else Interrupted()
        case _ if exit_code == -signal.SIGKILL:
            return FailedRun(KILLED)
    message = (
        f"The run ended without a word (exit code {exit_code}); the job's logs show its last lines."
    )
    return FailedRun(Failure("internal_error", message))
