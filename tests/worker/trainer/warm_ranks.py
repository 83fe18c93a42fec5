"""Two ranks under the real torchrun that have imported the stack: each forks its part of a run.

A run costs seconds, not the start of torchrun and of two interpreters. Every run is two processes
of its own, which meet as those of the worker do; a run on one device is trained by the first rank.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psutil

from app.jobs.spec import ResourcesSpec
from tests.conftest import free_port, wait_until
from worker import launcher
from worker.rundir import RunDir

RANKS = ResourcesSpec(gpus=2, zero_stage=None)


class WarmRanks:
    """Trains runs on both ranks, one after the other."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self._folder = folder
        self._process = process
        self._numbers = count()

    def train(self, run: RunDir) -> int:
        """Train a run folder; return the first exit code of a rank that is not 0."""
        number = next(self._numbers)
        answers = [answer(self._folder, number, rank) for rank in range(RANKS.gpus)]
        write(order(self._folder, number), f"{free_port()} {run.path}")

        wait_until(
            lambda: all(path.exists() for path in answers) or self._process.poll() is not None,
            timeout_s=240,  # DeepSpeed compiles a part of itself, once a machine
        )
        return next((code for path in answers if (code := int(path.read_text()))), 0)


@contextmanager
def warm_ranks(folder: Path) -> Iterator[WarmRanks]:
    """Start the ranks; orders and answers are files in `folder`."""
    command = launcher.train_command(folder, RANKS)
    command[command.index("worker.trainer")] = "tests.worker.trainer.warm_ranks"
    environment = launcher.train_environment(
        dict(os.environ), devices=["cpu"] * RANKS.gpus, offline=True
    )
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield WarmRanks(folder, process)
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End torchrun, the ranks and what they forked; nothing, where all has ended."""
    if process.poll() is None:
        for found in psutil.Process(process.pid).children(recursive=True):
            found.kill()
        process.kill()
        process.wait()


def order(folder: Path, number: int) -> Path:
    return folder / f"{number}.order"


def answer(folder: Path, number: int, rank: int) -> Path:
    return folder / f"{number}.{rank}.code"


def write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.rename(path)


def main() -> None:
    """Fork a part of each run that is ordered, and answer with how it ended."""
    import deepspeed  # noqa: F401  what takes long

    import worker.trainer.recipe  # noqa: F401  what takes longer

    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    for number in count():
        while not order(folder, number).exists():
            time.sleep(0.02)
        port, _, run = order(folder, number).read_text().partition(" ")
        child = os.fork()
        if child == 0:
            os._exit(train(RunDir(Path(run)), port, rank))
        _, status = os.waitpid(child, 0)
        write(answer(folder, number, rank), str(os.waitstatus_to_exitcode(status)))


def train(run: RunDir, port: str, rank: int) -> int:
    """Train one part of the run; the ranks meet at a store of their own, not at torchrun's."""
    from tests.worker.trainer.warm import train as train_logged

    if run.read_spec().resources.gpus == 1:
        for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
            del os.environ[name]
        if rank > 0:
            return 0
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": port}
    return train_logged({"run": str(run.path), "kill_at": None})


if __name__ == "__main__":
    main()
