"""Turns what can go wrong in a run into a code and a sentence the user can act on."""

import errno
import os
import re
import time

import psutil
import torch
from safetensors import SafetensorError

from app.jobs.spec import Failed, TrainSpec
from worker.memory import GIB, advice, total_bytes


class RunError(Exception):
    """The run cannot go on; the message tells the user what to do."""

    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


DISK_FULL = "The worker's disk is full; free space under its data folder."
WANTED = re.compile(r"[Tt]ried to allocate ([\d.]+ \w+)")
RANK_LOST = "Another process of the run is gone; this one cannot go on without it."
# What gloo and NCCL say when a process at the other end of a connection is gone.
GONE = (
    "connection closed by peer", "connection reset by peer", "connection refused", "broken pipe",
    "remote process exited", "socket closed",
)  # fmt: skip


def diverged(step: int, losses: list[float]) -> RunError:
    """The loss is not finite any more."""
    shown = ", ".join(f"{loss:.3g}" for loss in losses[-5:]) or "none"
    return RunError(
        "diverged",
        f"The loss is not finite at step {step} (the last ones before: {shown}). Lower"
        " training.learning_rate or perturbation.rho, or raise training.warmup_ratio.",
    )


def explain(error: BaseException, spec: TrainSpec) -> Failed:
    """Return the event for an error; the traceback belongs to the log."""
    if isinstance(error, RunError):
        return _failed(error.code, error.message, error.param)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _is_cpu_oom(error):
        message = f"The run ran out of memory{_wanted(error)}: {_memory()}. {advice(spec)}"
        return _failed("out_of_memory", message, "training.micro_batch_size")
    if _is_disk_full(error):
        return _failed("disk_full", DISK_FULL)
    if _is_rank_lost(error):
        return _failed("rank_lost", RANK_LOST)
    first_line = (str(error).splitlines() or [""])[0]
    message = f"{type(error).__name__}: {first_line}. The job's logs have the details."
    return _failed("internal_error", message)


def _wanted(error: BaseException) -> str:
    """Say what it could not have, as torch tells it."""
    found = WANTED.search(str(error))
    return f" when it wanted {found[1]} more" if found else ""


def _memory() -> str:
    """Say how much memory this process takes, of how much there is."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        ours = torch.cuda.max_memory_reserved()
        return (
            f"it took {ours / GIB:.1f} GiB at most of the GPU's {total / GIB:.1f} GiB, of which"
            f" {free / GIB:.1f} GiB are free"
        )
    ours = psutil.Process().memory_info().rss
    return f"it takes {ours / GIB:.1f} GiB of the machine's {total_bytes() / GIB:.1f} GiB"


def _is_disk_full(error: BaseException) -> bool:
    """Tell a full disk, which safetensors and torch wrap into errors of their own."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return True
    return isinstance(error, SafetensorError | RuntimeError) and any(
        said in str(error)
        for said in (
            os.strerror(errno.ENOSPC),
            "PytorchStreamWriter failed writing",
            "basic_ios::clear: iostream error",
        )
    )


def _is_rank_lost(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in GONE)


def _is_cpu_oom(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _failed(code: str, message: str, param: str | None = None) -> Failed:
    return Failed(at=time.time(), code=code, message=message, param=param)
