"""A whole Basin of its own, whose parts can be killed, frozen and started again one by one."""

import asyncio
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from app import migrate
from app.db import connected
from app.embedded import Server, Services, run_services, start_postgres, start_redis
from app.keys import service as keys
from app.settings import inherited_environment
from app.up import LEAN_MALLOC
from tests.factories import PEPPER, jsonl
from tests.waiting import answers, free_port, wait_until

OVER = ("succeeded", "failed", "cancelled")
JOBS = "/fine_tuning/jobs"
WAITS = '"warm_trainer.waits"'
CHATS = jsonl(24)


@dataclass
class Worker:
    """A Celery worker and its data folder: a machine of its own, as far as a job can tell."""

    process: subprocess.Popen[bytes]
    data: Path
    log: Path


@dataclass
class Cluster:
    """Everything a job needs, on this machine."""

    root: Path
    models: Path
    services: Services
    port: int
    key: str = ""
    api: subprocess.Popen[bytes] | None = None
    workers: list[Worker] = field(default_factory=list)
    servers: dict[str, Server] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)  # of what starts from now on

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}/v1",
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=30,
        )

    # parts

    def start_api(self) -> None:
        command = [sys.executable, "-m", "app.serve"]
        with (self.root / "api.log").open("ab") as output:
            self.api = subprocess.Popen(
                [*command, "--port", str(self.port)],
                env=self._environment(self.root / "api") | LEAN_MALLOC,
                stdout=output,
                stderr=output,
            )
        wait_until(lambda: answers(f"http://127.0.0.1:{self.port}"), timeout_s=60)

    def kill_api(self) -> None:
        assert self.api is not None
        self.api.kill()
        self.api.wait()

    def start_worker(
        self, *, devices: str = "cpu", data: Path | None = None, warm: bool = True
    ) -> Worker:
        data = data or self.root / f"worker-{len(self.workers)}"
        log = self.root / f"worker-{len(self.workers)}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker"],
                env=self._environment(data)
                | {"BASIN_DEVICES": devices, "BASIN_WARM_TRAINERS": str(warm)},
                stdout=output,
                stderr=output,
            )
        self.workers.append(Worker(process, data, log))
        return self.workers[-1]

    def kill_worker(self, worker: Worker) -> None:
        """Kill a worker as the loss of its machine would: at once, with all it started."""
        family = [psutil.Process(worker.process.pid)]
        family += family[0].children(recursive=True)
        for process in family:
            kill(process)
        worker.process.wait()

    def warm(self, worker: Worker) -> list[psutil.Process]:
        """What waits for a run on a worker, or gets ready to."""
        return [
            child
            for child in psutil.Process(worker.process.pid).children()
            if child.status() != psutil.STATUS_ZOMBIE and "worker.trainer.warm" in child.cmdline()
        ]

    def wait_for_warm(self, worker: Worker, *, timeout_s: float = 120) -> psutil.Process:
        """Return the process that a worker says to be waiting for a run."""
        found: list[psutil.Process] = []

        def one_waits() -> bool:
            told = [line for line in worker.log.read_text().splitlines() if WAITS in line]
            pids = {json.loads(line)["pid"] for line in told}
            found[:] = [process for process in self.warm(worker) if process.pid in pids]
            return bool(found)

        wait_until(one_waits, timeout_s=timeout_s)
        return found[0]

    def start_postgres(self) -> None:
        self.servers["postgres"] = start_postgres(self.root / "data", self._sockets)

    def start_redis(self) -> None:
        self.servers["redis"] = start_redis(self.root / "data", self._sockets)

    def kill_server(self, name: str) -> None:
        """SIGKILL a server, and what it forked."""
        process = psutil.Process(self.servers[name].process.pid)
        for each in [process, *process.children(recursive=True)]:
            kill(each)
        self.servers[name].process.wait()

    def signal_server(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a server and what it forked."""
        process = psutil.Process(self.servers[name].process.pid)
        for each in [process, *process.children(recursive=True)]:
            each.send_signal(number)

    # jobs

    def upload(self, rows: bytes) -> str:
        with self.http as http:
            form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("t.jsonl", rows)}}
            file_id: str = http.post("/files", **form).json()["id"]
        return file_id

    def submit(self, *, rows: bytes = CHATS, **body: Any) -> str:
        asked = {"model": "tiny-llama", "training_file": self.upload(rows), "seed": 7}
        with self.http as http:
            made = http.post(JOBS, json=asked | body)
        assert made.status_code == 200, made.text
        job_id: str = made.json()["id"]
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        with self.http as http:
            found: dict[str, Any] = http.get(f"{JOBS}/{job_id}").json()
        return found

    def wait(
        self, job_id: str, *, until: tuple[str, ...] = OVER, timeout_s: float = 240
    ) -> dict[str, Any]:
        wait_until(lambda: self.job(job_id)["status"] in until, timeout_s=timeout_s)
        return self.job(job_id)

    def wait_for_step(self, job_id: str, step: int, *, timeout_s: float = 120) -> None:
        wait_until(lambda: self.job(job_id)["progress"]["step"] >= step, timeout_s=timeout_s)

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        with self.http as http:
            found: list[dict[str, Any]] = http.get(f"{JOBS}/{job_id}/attempts").json()["data"]
        return found

    def weights(self, job_id: str) -> str:
        """The hash of the adapter's weights; the card beside them names the job."""
        with self.http as http:
            archive = http.get(f"{JOBS}/{job_id}/adapter").content
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            found = tar.extractfile("adapter_model.safetensors")
            assert found is not None
            return hashlib.sha256(found.read()).hexdigest()

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        url = self.services.database_url.replace("postgresql+psycopg://", "postgresql://")
        with psycopg.connect(url, autocommit=True) as connection:
            found = connection.execute(query, values)
            return found.fetchall() if found.description else []

    def expire(self, job_id: str) -> None:
        """Let a lease run out: the minute that a test does not want to wait."""
        self.sql("UPDATE jobs SET lease_until = now() - interval '1 second' WHERE id = %s", job_id)

    # setting up

    def make_key(self) -> str:
        async def make() -> str:
            async with connected(self.services.database_url) as db, db.transaction() as tx:
                return await keys.create(tx, organization="acme", name="chaos", pepper=PEPPER)

        return asyncio.run(make())

    def stop(self) -> None:
        for worker in self.workers:
            worker.process.send_signal(signal.SIGCONT)
            worker.process.terminate()
        for worker in self.workers:
            worker.process.wait(60)
        if self.api is not None:
            self.api.terminate()
            self.api.wait(10)
        for server in self.servers.values():
            server.stop()

    @property
    def _sockets(self) -> Path:
        return (self.root / "data" / "sockets").readlink()

    def _environment(self, data: Path) -> dict[str, str]:
        return inherited_environment() | {
            "BASIN_REQUESTS_PER_MINUTE": "0",
            "BASIN_DATABASE_URL": self.services.database_url,
            "BASIN_REDIS_URL": self.services.redis_url,
            "BASIN_KEY_PEPPER": PEPPER,
            "BASIN_MODELS_DIR": str(self.models),
            "BASIN_DATA_DIR": str(data),
            "OMP_NUM_THREADS": "1",
            **self.settings,
        }


@contextmanager
def running(models: Path, settings: dict[str, str] | None = None) -> Iterator[Cluster]:
    """Start servers and API; workers are the test's to start."""
    root = Path(tempfile.mkdtemp(prefix="basin-chaos-", dir="/tmp"))
    root.chmod(0o755)
    try:
        with run_services(root / "data") as services:
            migrate.upgrade(services.database_url)
            cluster = Cluster(root, models, services, free_port())
            cluster.settings = settings or {}
            cluster.servers = {
                "postgres": services.servers[0],
                "redis": services.servers[1],
            }
            cluster.key = cluster.make_key()
            cluster.start_api()
            try:
                yield cluster
            finally:
                cluster.stop()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def freeze(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGSTOP)


def thaw(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGCONT)
