"""A process that has imported the stack and forks a run for each line it reads: a run in a second.

Every run is a process of its own, and dies by SIGKILL where it was told to.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

POINTS = ("step_begin", "step_end", "saving")


class Warm:
    """Runs trainings, one after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def train(self, run: Path, *, kill_at: str | None = None, step: int = 0) -> int:
        """Train a run folder in a fresh process; return its exit code, −9 when it was killed."""
        assert self._process.stdin and self._process.stdout
        order = {"run": str(run), "kill_at": kill_at, "step": step}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def warm() -> Iterator[Warm]:
    command = [sys.executable, "-m", "tests.worker.trainer.warm"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Warm(process)
        finally:
            assert process.stdin
            process.stdin.close()
            process.wait(timeout=30)


def main() -> None:
    """Fork a run for each line, and answer with how it ended."""
    import worker.trainer.recipe  # noqa: F401  what takes so long

    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(train(order))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def train(order: dict[str, Any]) -> int:
    from worker.trainer import __main__ as trainer

    log = os.open(f"{order['run']}/log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if order["kill_at"]:
        die(order["kill_at"], order["step"])
    sys.argv = ["worker.trainer", order["run"]]
    return trainer.main()


def die(point: str, step: int) -> None:
    """Let the process be killed at one point of its run."""
    from worker.trainer import model
    from worker.trainer.methods import Attached
    from worker.trainer.report import Reporter

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def wrap(kind: Any, name: str, now: Callable[..., bool]) -> None:
        original = getattr(kind, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if now(*args, **kwargs):
                kill()
            return original(*args, **kwargs)

        setattr(kind, name, wrapped)

    if point == "step_begin":
        wrap(Reporter, "on_step_begin", lambda _s, _a, state, *_, **__: state.global_step == step)
    elif point == "step_end":
        wrap(Reporter, "on_step_end", lambda _s, _a, state, *_, **__: state.global_step == step)
    elif point == "delivering":
        wrap(model, "prove", lambda *_, **__: True)
    else:
        wrap(Attached, "save_state", lambda _s, folder: folder.name == f"checkpoint-{step}")


if __name__ == "__main__":
    main()
