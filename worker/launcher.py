"""Starts a run, in one process or in one a device, and ends whatever it started."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

from app.jobs.spec import ResourcesSpec
from app.settings import GAMES_DIR
from worker.leash import OWN_PID

INHERITED = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV",
    "OMP_NUM_THREADS", "HF_HOME", "HF_HUB_CACHE", "CUDA_HOME", "SSL_CERT_FILE",
    "CC", "TRITON_CACHE_DIR", "TRITON_LIBCUDA_PATH",
    GAMES_DIR,
)  # fmt: skip

DEVICES = "CUDA_VISIBLE_DEVICES"
LINE_BYTES = 16 << 20  # the longest line that a process says


class Running(Protocol):
    """A process of ours, ended or not: asyncio's, or one that was there before its run."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def send_signal(self, signal: int, /) -> None: ...

    async def wait(self) -> int: ...


def train_command(run: Path, resources: ResourcesSpec) -> list[str]:
    """Return the argv of a run: one process, or torchrun and a rank on each device.

    Every process is on a leash: the ranks on torchrun's, which is on ours.
    """
    python = [sys.executable, "-m"]
    leash = [*python, "worker.leash"]
    trainer = [*python, "worker.trainer", str(run)]
    if not resources.ranked:
        return [*leash, str(os.getpid()), *trainer]
    torchrun = [*python, "torch.distributed.run", "--standalone", "--no-python"]
    ranks = [*torchrun, "--nproc-per-node", str(resources.gpus), *leash, OWN_PID, *trainer]
    return [*leash, str(os.getpid()), *ranks]


def train_environment(
    inherited: Mapping[str, str], *, devices: Sequence[str], offline: bool
) -> dict[str, str]:
    """Return a run's environment: what it needs to compute, no setting or secret of the service."""
    environment = {name: inherited[name] for name in INHERITED if name in inherited}
    environment |= {
        DEVICES: ",".join(device for device in devices if device != "cpu"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        # TRL loads MLflow where it is, and that a web framework; metrics go by the run's events.
        "DISABLE_MLFLOW_INTEGRATION": "TRUE",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # cuBLAS is deterministic only with a fixed workspace
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    if len(devices) > 1:
        environment.setdefault("OMP_NUM_THREADS", "1")  # else torchrun says so, aloud
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


async def launch_talking(
    command: list[str], *, environment: Mapping[str, str], log: Path
) -> Process:
    """Start a process in a new session that is spoken with by lines; a fresh `log` has the rest."""
    with log.open("wb") as output:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            env=dict(environment),
            start_new_session=True,
            limit=LINE_BYTES,
        )


def ask(process: Running) -> None:
    """Ask a run to save a checkpoint after its current step and stop; torchrun asks its ranks."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)


async def kill(process: Running) -> None:
    """End the run and whatever it started.

    torchrun gives each rank a session of its own: whoever descends from the run is listed before
    the run's group is killed, while it can be found.
    """
    try:
        descendants = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        descendants = []
    with suppress(ProcessLookupError):  # it has ended, and its group with it
        os.killpg(process.pid, signal.SIGKILL)
    for descendant in descendants:
        with suppress(psutil.NoSuchProcess):
            descendant.kill()
    await process.wait()
