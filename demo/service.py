"""Runs the service as its users do, `basin up`, for as long as the demo needs it."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

STOP_TIMEOUT_S = 75.0  # a run that is told to stop writes a checkpoint first
LAST_LINES = 12


class DemoError(Exception):
    """What went wrong, for the user to read."""


@dataclass(frozen=True)
class Served:
    """Where the service listens, and the key to it."""

    url: str
    api_key: str


@contextmanager
def running(data: Path, *, models: Path, hub_models: Sequence[str]) -> Iterator[Served]:
    """Start PostgreSQL, Redis, API and worker; stop them whatever happens.

    Raises:
        DemoError: the service did not start.
    """
    command = [sys.executable, "-m", "app.cli", "up", "--json", "--port", "0"]
    command += ["--data", str(data), "--models", str(models)]
    for hub_model in hub_models:
        command += ["--hub-model", hub_model]
    # A session of its own: Ctrl-C reaches us alone, and we stop the service in order.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield _ready(process)
    finally:
        _stop(process)


def ends_of_logs(data: Path) -> str:
    """Return the last lines of every log of the service."""
    ends = []
    for log in sorted((data / "logs").glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        ends.append("\n".join([f"── {log}", *lines]))
    return "\n\n".join(ends)


def _ready(process: subprocess.Popen[str]) -> Served:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise DemoError(f"The service did not start (exit code {process.wait()}).")
    told = json.loads(line)
    return Served(url=told["url"], api_key=told["api_key"])


def _stop(process: subprocess.Popen[str]) -> None:
    """Ask once and wait; ask again, which means hurry, when that takes too long or on Ctrl-C."""
    with process:
        for patience_s in (STOP_TIMEOUT_S, 10.0):
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                process.wait(patience_s)
                return
        process.kill()
