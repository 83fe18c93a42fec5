"""Turns what can go wrong in a run into a code and a sentence the user can act on."""

import errno
import time

import torch

from app.jobs.spec import Failed


class RunError(Exception):
    """The run cannot go on; the message tells the user what to do."""

    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


OUT_OF_MEMORY = (
    "The run ran out of memory. Lower training.micro_batch_size or training.max_length, or set"
    " training.gradient_checkpointing to true."
)
DISK_FULL = "The worker's disk is full; free space under its data folder and submit again."


def diverged(step: int, losses: list[float]) -> RunError:
    """The loss is not finite any more."""
    shown = ", ".join(f"{loss:.3g}" for loss in losses[-5:]) or "none"
    return RunError(
        "diverged",
        f"The loss is not finite at step {step} (the last ones before: {shown}). Lower"
        " training.learning_rate or perturbation.rho, or raise training.warmup_ratio.",
    )


def explain(error: BaseException) -> Failed:
    """Return the event for an error; the traceback belongs to the log."""
    if isinstance(error, RunError):
        return _failed(error.code, error.message, error.param)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _is_cpu_oom(error):
        return _failed("out_of_memory", OUT_OF_MEMORY, "training.micro_batch_size")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _failed("disk_full", DISK_FULL)
    first_line = (str(error).splitlines() or [""])[0]
    message = f"{type(error).__name__}: {first_line}. The job's logs have the details."
    return _failed("internal_error", message)


def _is_cpu_oom(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


def _failed(code: str, message: str, param: str | None = None) -> Failed:
    return Failed(at=time.time(), code=code, message=message, param=param)
