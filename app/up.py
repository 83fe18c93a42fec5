"""What `basin up` does: everything on one machine, until it is told to stop."""

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import httpx
import psutil
from rich.console import Console

from app.embedded import ServiceError, Services, end_of, run_services, spawn
from app.keys.bootstrap import first_key
from app.migrate import upgrade
from app.settings import inherited_environment

READY_TIMEOUT_S = 60.0
POLL_S = 0.1
MODELS = "models"  # below the data folder, when no other is named
PEPPER = "pepper"
KEY = "key"
URL = "url"  # where the API is, for the commands that ask it; there while it runs
API_SECRETS = ("BASIN_KEY_PEPPER", "BASIN_SECRETS_KEY")
QUICK_FAILURE_S = 30.0
MOST_QUICK_FAILURES = 5

errors = Console(stderr=True)
out = Console()


def up(
    *,
    data: Path,
    models: Path | None,
    host: str,
    port: int,
    as_json: bool,
    hub_models: Sequence[str] = (),
    devices: str = "auto",
) -> None:
    """Run PostgreSQL, Redis, the API and a worker until a signal; exit with 1 when that fails."""
    data = data.resolve()
    options = _options(data=data, models=models, hub_models=hub_models, devices=devices)
    with _stop_request() as stop:
        try:
            with suppress(KeyboardInterrupt):
                port = free_port(host, port)
                _run(data, options=options, host=host, port=port, as_json=as_json, stop=stop)
        except ServiceError as error:
            errors.print(f"{error}", style="red", markup=False, highlight=False, soft_wrap=True)
            sys.exit(1)


def free_port(host: str, port: int) -> int:
    """Return the port, or for 0 one that is free; raise when it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = f"Cannot listen on {host} port {port} ({error.strerror}); choose another"
            raise ServiceError(f"{message} with --port, or --port 0 for any.") from error
        return int(probe.getsockname()[1])


@dataclass
class StopRequest:
    """How often we were told to stop; the first time interrupts whatever we do."""

    count: int = 0
    interrupts: bool = True

    def receive(self, _number: int, _frame: FrameType | None) -> None:
        """Handle SIGINT or SIGTERM."""
        self.count += 1
        if self.interrupts:
            self.interrupts = False
            raise KeyboardInterrupt

    @property
    def hurry(self) -> bool:
        return self.count > 1


@dataclass
class Child:
    """A program of ours that is started again when it ends by itself."""

    name: str
    argv: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    grace_s: float
    back_off_s: float = 0.5
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    started_at: float = field(default=0.0, init=False)
    failures: int = field(default=0, init=False)

    def start(self) -> None:
        """Start the program; told to stop, as we would do it, should we be killed."""
        self.started_at = time.monotonic()
        self.process = spawn(
            self.argv, log=self.log, environment=self.environment, death_signal=signal.SIGTERM
        )

    def tend(self) -> None:
        """Start the program again when it has ended, later each time; give up at the fifth."""
        if self.process is None:
            if time.monotonic() >= self.started_at:
                self.start()
            return
        if self.process.poll() is None:
            return
        quick = time.monotonic() - self.started_at < QUICK_FAILURE_S
        self.failures = self.failures + 1 if quick else 1
        ended = f"The {self.name} stopped (exit code {self.process.returncode})"
        if self.failures >= MOST_QUICK_FAILURES:
            raise ServiceError(f"{ended}, {self.failures} times in a row.\n{end_of(self.log)}")
        back_off_s = self.back_off_s * 2 ** (self.failures - 1)
        message = f"{ended}; it starts again in {back_off_s:g} s. Its log: {self.log}"
        errors.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)
        self.process, self.started_at = None, time.monotonic() + back_off_s

    def stop(self, stop: StopRequest) -> None:
        """End the program and all that it started: politely, then by force."""
        if self.process is None:
            return
        family = _family(self.process.pid)  # orphans can no longer be found from here
        self.process.terminate()
        deadline = time.monotonic() + self.grace_s
        while self.process.poll() is None and time.monotonic() < deadline and not stop.hurry:
            time.sleep(POLL_S)
        for relative in family | _family(self.process.pid):
            with suppress(psutil.NoSuchProcess):
                relative.kill()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _run(
    data: Path,
    *,
    options: dict[str, str],
    host: str,
    port: int,
    as_json: bool,
    stop: StopRequest,
) -> None:
    """Start everything in order, tell the user, and tend it until a signal interrupts."""
    inherited = inherited_environment()
    given = inherited.get("BASIN_DATABASE_URL"), inherited.get("BASIN_REDIS_URL")
    with run_services(data, database_url=given[0], redis_url=given[1]) as services:
        (data / MODELS).mkdir(exist_ok=True)
        upgrade(services.database_url)
        pepper = inherited.get("BASIN_KEY_PEPPER") or _pepper(data / PEPPER)
        key_file = data / KEY
        is_new = not key_file.exists()
        key = asyncio.run(first_key(services.database_url, pepper, key_file))
        environment = inherited | options
        environment["BASIN_DATABASE_URL"] = services.database_url
        environment["BASIN_REDIS_URL"] = services.redis_url
        # A worker learns neither what keys nor what secrets are kept with.
        secret = {name: environment.pop(name) for name in API_SECRETS if name in environment}
        url = _url(host, port)
        api = _api(data, environment | secret | {"BASIN_KEY_PEPPER": pepper}, host=host, port=port)
        with _running((api, _worker(data, environment)), stop) as children:
            _wait_until_ready(url, children, services)
            with _found_at(data / URL, url):
                if as_json:
                    print(json.dumps({"url": url, "api_key": key}), flush=True)
                else:
                    _greet(url, key if is_new else None, key_file=key_file)
                while True:
                    _tend(children, services)
                    time.sleep(POLL_S)


# glibc raises its threshold for mmap with each large block that is freed, and then keeps the next
# ones: a file passing through in pieces of 1 MiB would leave the API 11 MB larger for good.
LEAN_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}


def _api(data: Path, environment: dict[str, str], *, host: str, port: int) -> Child:
    argv = [sys.executable, "-m", "app.serve", "--host", host, "--port", str(port)]
    return Child("API", argv, data / "logs" / "api.log", environment | LEAN_MALLOC, grace_s=10)


def _worker(data: Path, environment: Mapping[str, str]) -> Child:
    argv = [sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker"]
    # It has no neighbours to wait for: a second less until it is ready.
    argv += ["--loglevel", "INFO", "--without-mingle", "--without-gossip"]
    # A worker that is told to stop has its run write a checkpoint first.
    return Child("worker", argv, data / "logs" / "worker.log", environment, grace_s=45)


@contextmanager
def _running(children: Sequence[Child], stop: StopRequest) -> Iterator[Sequence[Child]]:
    """Run the children; end them in the opposite order, and let no signal cut that short."""
    try:
        for child in children:
            child.start()
        yield children
    finally:
        stop.interrupts = False
        for child in reversed(children):
            child.stop(stop)


@contextmanager
def _found_at(file: Path, url: str) -> Iterator[None]:
    """Keep the URL where other commands look for it, as long as it is good."""
    file.write_text(url)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _wait_until_ready(url: str, children: Sequence[Child], services: Services) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    # trust_env: a proxy in the environment knows nothing of our own port.
    with httpx.Client(trust_env=False, timeout=10) as client:
        while not _is_ready(client, url):
            _tend(children, services)
            if time.monotonic() > deadline:
                ends = "\n".join(end_of(child.log) for child in children)
                raise ServiceError(f"Not ready after {READY_TIMEOUT_S:g} s.\n{ends}")
            time.sleep(POLL_S)


def _is_ready(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _tend(children: Sequence[Child], services: Services) -> None:
    for child in children:
        child.tend()
    for server in services.servers:
        server.check()


def _greet(url: str, new_key: str | None, *, key_file: Path) -> None:
    """Say where it runs and how to use it; a key is shown once, then only where it is kept."""
    secret = json.dumps(new_key) if new_key else f"open({json.dumps(str(key_file))}).read().strip()"
    out.print(f"Basin runs at {url}\n", style="bold green", highlight=False, soft_wrap=True)
    text = f"""\
API key      {new_key or f"in {key_file}"}
Data folder  {key_file.parent}

    import openai
    client = openai.OpenAI(base_url="{url}/v1", api_key={secret})
    print(client.models.list())

Ctrl-C stops it."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _options(
    *, data: Path, models: Path | None, hub_models: Sequence[str], devices: str
) -> dict[str, str]:
    """Return the command line as environment; what was not said stays as it was inherited."""
    options = {"BASIN_DATA_DIR": str(data)}
    if models is not None:
        options["BASIN_MODELS_DIR"] = str(models.resolve())
    elif "BASIN_MODELS_DIR" not in inherited_environment():
        options["BASIN_MODELS_DIR"] = str(data / MODELS)
    if hub_models:
        options["BASIN_HUB_MODELS"] = ",".join(hub_models)
    if devices != "auto":
        options["BASIN_DEVICES"] = devices
    return options


def _pepper(path: Path) -> str:
    """Return the secret that key digests are made with; made once."""
    if not path.exists():
        fresh = path.with_name(f"{path.name}.tmp")
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_urlsafe(32))
        fresh.rename(path)
    return path.read_text()


def _url(host: str, port: int) -> str:
    """Return where this machine reaches the API; an address for all of them is no destination."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  a key, not a bind
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _family(pid: int) -> set[psutil.Process]:
    """Return what a process started, and what that started."""
    with suppress(psutil.NoSuchProcess):
        return set(psutil.Process(pid).children(recursive=True))
    return set()


@contextmanager
def _stop_request() -> Iterator[StopRequest]:
    """Receive SIGINT and SIGTERM as long as the block lasts."""
    stop = StopRequest()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop.receive) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
