"""Runs the service as its users do, `basin up`, for as long as the demo needs it."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.settings import inherited_environment

STOP_TIMEOUT_S = 75.0  # a run that is told to stop writes a checkpoint first
LAST_LINES = 10


class DemoError(Exception):
    """What went wrong, for the user to read."""


class ServiceFailed(DemoError):
    """The service, or a job in it; `logs` say more."""

    def __init__(self, message: str, logs: str = "") -> None:
        super().__init__(message)
        self.logs = logs


@dataclass(frozen=True)
class Served:
    """Where the service listens, and the key to it."""

    url: str
    api_key: str


@contextmanager
def running(data: Path, *, models: Path, hub_models: Sequence[str]) -> Iterator[Served]:
    """Start PostgreSQL, Redis, API and worker; stop them whatever happens.

    Raises:
        ServiceFailed: the service did not start.
    """
    command = [sys.executable, "-m", "app.cli", "up", "--json", "--port", "0"]
    command += ["--data", str(data), "--models", str(models)]
    for hub_model in hub_models:
        command += ["--hub-model", hub_model]
    before = _sizes(data)
    log = data.with_name(f"{data.name}.log")
    with log.open("wb") as errors:
        # A session of its own: Ctrl-C reaches us alone, and we stop the service in order.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(),
            start_new_session=True,
        )
    try:
        yield _ready(process, log)
    except ServiceFailed as failure:
        failure.logs = f"{ends_of_logs(data, before)}\n{failure.logs}"
        raise
    finally:
        _stop(process)


def last_lines(text: str, title: object) -> str:
    """Return the end of a log under its title; nothing of an empty one."""
    lines = text.splitlines()[-LAST_LINES:]
    return "\n".join([f"── {title}", *lines, ""]) if lines else ""


def ends_of_logs(data: Path, before: Mapping[Path, int]) -> str:
    """Return the last lines of every log of the service, none from before it had that size."""
    ends = []
    for log in _sizes(data):
        with log.open(errors="replace") as file:
            file.seek(before.get(log, 0))
            ends.append(last_lines(file.read(), log))
    return "\n".join(filter(None, ends))


def _sizes(data: Path) -> dict[Path, int]:
    return {log: log.stat().st_size for log in sorted((data / "logs").glob("*.log"))}


def _environment() -> dict[str, str]:
    """Return ours without Basin's settings: the demo must not touch a database in use."""
    inherited = inherited_environment()
    return {name: value for name, value in inherited.items() if not name.startswith("BASIN_")}


def _ready(process: subprocess.Popen[str], log: Path) -> Served:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        code, why = process.wait(), last_lines(log.read_text(errors="replace"), log)
        raise ServiceFailed(f"The service did not start (exit code {code}).", why)
    ready = json.loads(line)
    return Served(url=ready["url"], api_key=ready["api_key"])


def _stop(process: subprocess.Popen[str]) -> None:
    """Ask once and wait; ask again, which means hurry, when that takes too long or on Ctrl-C."""
    with process:
        for patience_s in (STOP_TIMEOUT_S, 10.0):
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                process.wait(patience_s)
                return
        process.kill()
