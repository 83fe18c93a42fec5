"""Starts a run as a process group of its own, and ends the whole group."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

INHERITED = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV",
    "OMP_NUM_THREADS", "HF_HOME", "HF_HUB_CACHE", "CUDA_HOME", "SSL_CERT_FILE",
)  # fmt: skip


def train_command(run: Path) -> list[str]:
    """Return the argv of a run on one device."""
    python = [sys.executable, "-m"]
    return [*python, "worker.leash", str(os.getpid()), *python, "worker.trainer", str(run)]


def train_environment(
    inherited: Mapping[str, str], *, device: str, offline: bool
) -> dict[str, str]:
    """Return a run's environment: what it needs to compute, no setting or secret of the service."""
    environment = {name: inherited[name] for name in INHERITED if name in inherited}
    environment |= {
        "CUDA_VISIBLE_DEVICES": "" if device == "cpu" else device,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # cuBLAS is deterministic only with a fixed workspace
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


async def launch(command: list[str], *, environment: Mapping[str, str], log: Path) -> Process:
    """Start a run in a new session, its output in `log`."""
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            start_new_session=True,
        )


def ask(process: Process) -> None:
    """Ask a run to save a checkpoint after its current step and stop."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)


async def kill(process: Process) -> None:
    """End the run and whatever it started: its whole process group."""
    with suppress(ProcessLookupError):  # it has ended, and its group with it
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
