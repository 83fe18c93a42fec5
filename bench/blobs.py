"""How fast an adapter goes into the database and out through the API, and in how much memory.

`python -m bench.blobs` starts a PostgreSQL, a Redis and one API process of its own. Up: the
worker's way (packed, hashed, stored, read back) and the API's parts of an upload, each against
COPY of the same bytes into a table. Down: the API against nginx serving the same archive from a
file, whole and from random places on; where nginx is missing it says so, and compares with
nothing. Servers and client share the machine. The first download of all is compared byte for byte
with what went up.
"""

import asyncio
import http.client
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import httpx
import psutil
import psycopg
import typer
from rich.console import Console
from rich.progress import track
from sqlalchemy import update

from app import blobs
from app.db import Database, connected
from app.jobs import lease
from app.jobs.states import JobStatus
from app.tables import Job
from bench.result import JsonFile, Line, Target, alone, compared, report
from tests.chaos.cluster import Cluster, running
from tests.factories import make_model_folder
from tests.waiting import free_port, wait_until
from worker import archive, uploads
from worker.run import Run
from worker.rundir import RunDir

MIB = 1 << 20
PART_BYTES = 32 * MIB
PART_HEAD = b"""--b0undary\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n"""
PART_END = b"\r\n--b0undary--\r\n"
LOOK_S = 0.02
PARALLEL = 8
TABLE = """
    CREATE TABLE IF NOT EXISTS copied (seq integer PRIMARY KEY, data bytea);
    ALTER TABLE copied ALTER COLUMN data SET STORAGE EXTERNAL;
    TRUNCATE copied
"""


@dataclass
class Rounds:
    """What was measured, a value a round; rates in MB/s."""

    worker_up: list[float] = field(default_factory=list)
    parts_up: list[float] = field(default_factory=list)
    copied: list[float] = field(default_factory=list)
    down: list[float] = field(default_factory=list)
    nginx_down: list[float] = field(default_factory=list)
    starts_ms: list[float] = field(default_factory=list)
    nginx_starts_ms: list[float] = field(default_factory=list)
    grown_mib: dict[str, float] = field(default_factory=dict)


@dataclass
class Bench:
    """The parts that are timed, and the adapter that goes through them."""

    cluster: Cluster
    adapter: Path
    packed: Path
    scratch: Path
    rounds: Rounds = field(default_factory=Rounds)

    @property
    def size(self) -> int:
        return self.packed.stat().st_size

    def rate(self, work: Callable[[], object]) -> float:
        """Return MB/s of the whole archive."""
        began = time.perf_counter()
        work()
        return self.size / 1e6 / (time.perf_counter() - began)


async def store(bench: Bench, *, rounds: int) -> str:
    """Time the ways up in turn; return the job that now has the adapter."""
    job_id = await asyncio.to_thread(bench.cluster.submit)
    async with connected(bench.cluster.services.database_url) as db:
        async with db.transaction() as tx:
            claim = await lease.claim(tx, "bench", free=1)
        assert claim is not None and claim.job_id == job_id
        run = Run(db, claim, RunDir(bench.scratch / "run"), threading.Event())
        stored = await uploads.store(run, bench.adapter)  # the first one grows the files
        for _ in track(range(rounds), "up"):
            async with db.transaction() as tx:
                await blobs.give_up(tx, stored.blob_id)
            await _forget(db, bench.cluster)
            began = time.perf_counter()
            stored = await uploads.store(run, bench.adapter)
            bench.rounds.worker_up.append(stored.size / 1e6 / (time.perf_counter() - began))
            copied = await asyncio.to_thread(bench.rate, lambda: copy(bench))
            bench.rounds.copied.append(copied)
            parts = await asyncio.to_thread(bench.rate, lambda: send_parts(bench))
            bench.rounds.parts_up.append(parts)
        async with db.transaction() as tx:
            await blobs.seal(tx, stored)
            values = {"adapter_blob_id": stored.blob_id, "status": JobStatus.SUCCEEDED}
            await tx.execute(update(Job).where(Job.id == job_id).values(values))
    return job_id


async def _forget(db: Database, cluster: Cluster) -> None:
    """Remove what the round before left, and write out what is dirty: no round pays for it."""
    await blobs.purge(db)
    await asyncio.to_thread(cluster.sql, TABLE)
    await asyncio.to_thread(cluster.sql, "CHECKPOINT")


def copy(bench: Bench) -> None:
    """Copy the archive into a table, as `psql` does, in rows of as many bytes as ours."""
    url = bench.cluster.services.database_url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(url) as connection, bench.packed.open("rb") as file:
        rows = "COPY copied (seq, data) FROM STDIN (FORMAT BINARY)"
        with connection.cursor().copy(rows) as into:
            into.set_types(["int4", "bytea"])
            for seq, data in enumerate(iter(lambda: file.read(blobs.CHUNK_BYTES), b"")):
                into.write_row((seq, data))


def send_parts(bench: Bench) -> None:
    """Send the archive to the API as the parts of an upload, one after another; then let it go."""
    asked = {"filename": "adapter.bin", "mime_type": "application/octet-stream"}
    with bench.cluster.http as api, bench.packed.open("rb") as file:
        made = api.post("/uploads", json=asked | {"purpose": "fine-tune", "bytes": bench.size})
        assert made.status_code == 200, made.text
        upload = made.json()["id"]
        connection = http.client.HTTPConnection("127.0.0.1", bench.cluster.port, timeout=120)
        headers = {
            "Authorization": f"Bearer {bench.cluster.key}",
            "Content-Type": "multipart/form-data; boundary=b0undary",
        }
        for data in iter(lambda: file.read(PART_BYTES), b""):
            size = len(PART_HEAD) + len(data) + len(PART_END)
            length = {"Content-Length": str(size)}
            body = [PART_HEAD, data, PART_END]
            connection.request("POST", f"/v1/uploads/{upload}/parts", body, headers | length)
            sent = connection.getresponse()
            told = sent.read()
            assert sent.status == 200, told
        connection.close()
        api.post(f"/uploads/{upload}/cancel")


@contextmanager
def nginx(folder: Path, program: str) -> Iterator[str]:
    """Serve a folder; yield the URL."""
    port = free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/pid; events {{}}\n"
        f"http {{ access_log off; sendfile on; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    argv: list[str | Path] = [program, "-c", folder / "nginx.conf", "-e", folder / "error.log"]
    process = subprocess.Popen(argv)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _is_there(url), timeout_s=30)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _is_there(url: str) -> bool:
    try:
        return httpx.get(url).status_code > 0
    except httpx.TransportError:
        return False


@dataclass(frozen=True)
class Source:
    """Where the archive is downloaded from."""

    url: str
    key: str = ""

    def get(self, *, start: int = 0) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Ask for the bytes from some place on."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        headers |= {"Range": f"bytes={start}-"} if start else {}
        connection.request("GET", parts.path, headers=headers)
        response = connection.getresponse()
        assert response.status == (206 if start else 200), response.read()
        return connection, response

    def read(self, *, expected: int, beside: Path | None = None) -> None:
        """Take all, and compare it with a file where one is given."""
        connection, response = self.get()
        buffer, taken = memoryview(bytearray(MIB)), 0
        with (beside or Path(os.devnull)).open("rb") as file:
            while size := response.readinto(buffer):
                assert beside is None or buffer[:size] == file.read(size), "other bytes"
                taken += size
        connection.close()
        assert taken == expected, f"{taken:,} bytes, not {expected:,}"

    def start_ms(self, start: int) -> float:
        """Return how long the first byte of a range takes, the connection included."""
        began = time.perf_counter()
        connection, response = self.get(start=start)
        assert response.read(1)
        took = time.perf_counter() - began
        connection.close()
        return 1000 * took


def load(bench: Bench, ours: Source, theirs: Source | None, *, rounds: int, starts: int) -> None:
    """Time downloads in turn, and the beginnings of ranges."""
    found = bench.rounds
    for _ in track(range(rounds), "down"):
        found.down.append(bench.rate(lambda: ours.read(expected=bench.size)))
        if theirs:
            found.nginx_down.append(bench.rate(lambda: theirs.read(expected=bench.size)))
    rng = random.Random(0)
    for _ in track(range(starts), "ranges"):
        place = rng.randrange(1, bench.size)
        found.starts_ms.append(ours.start_ms(place))
        if theirs:
            found.nginx_starts_ms.append(theirs.start_ms(place))


@contextmanager
def growth(process: psutil.Process, name: str, found: Rounds) -> Iterator[None]:
    """Note by how many MiB a process is larger at most in the block than before it."""
    before, most, over = process.memory_info().rss, 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not over.wait(LOOK_S):
            most = max(most, process.memory_info().rss)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()
        found.grown_mib[name] = (most - before) / MIB


def measure(bench: Bench, *, rounds: int, starts: int) -> None:
    """Measure all, the bytes compared first."""
    assert bench.cluster.api is not None
    api = psutil.Process(bench.cluster.api.pid)
    with growth(api, "up", bench.rounds):
        job_id = asyncio.run(store(bench, rounds=rounds))
    url = f"http://127.0.0.1:{bench.cluster.port}/v1/fine_tuning/jobs/{job_id}/adapter"
    ours = Source(url, bench.cluster.key)
    with growth(api, "down", bench.rounds):
        ours.read(expected=bench.size, beside=bench.packed)
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        Console(stderr=True).print("nginx is missing: downloads are compared with nothing.")
        load(bench, ours, None, rounds=rounds, starts=starts)
    else:
        with nginx(bench.packed.parent, program) as served:
            theirs = Source(f"{served}/{bench.packed.name}")
            load(bench, ours, theirs, rounds=rounds, starts=starts)
    with growth(api, "at once", bench.rounds), ThreadPoolExecutor(PARALLEL) as pool:
        for done in [pool.submit(ours.read, expected=bench.size) for _ in range(PARALLEL)]:
            done.result()


def lines(found: Rounds, *, megabytes: float) -> list[Line]:
    """Return what was found, with the targets."""
    size = f"an adapter of {megabytes:,.0f} MB"
    up, down = Target(sign="≥", bound=60), Target(sign="≥", bound=300)
    soon, small = Target(sign="≤", bound=20), Target(sign="≤", bound=32)
    copied, served, starts = found.copied, found.nginx_down, found.nginx_starts_ms
    return [
        _beside(f"{size} up, by a worker", "MB/s", found.worker_up, copied, "COPY", up),
        _beside(f"{size} up, in parts", "MB/s", found.parts_up, copied, "COPY", up),
        _beside(f"{size} down", "MB/s", found.down, served, "nginx", down),
        _beside("first byte of a range", "ms", found.starts_ms, starts, "nginx", soon),
        alone("the API grows, parts up", "MiB", [found.grown_mib["up"]], target=small),
        alone("the API grows, first download", "MiB", [found.grown_mib["down"]], target=small),
        alone(f"the API grows, {PARALLEL} downloads", "MiB", [found.grown_mib["at once"]]),
    ]


def _beside(
    what: str, unit: str, ours: list[float], theirs: list[float], against: str, target: Target
) -> Line:
    if not theirs:
        return alone(what, unit, ours, target=target)
    return compared(what, unit, ours=ours, theirs=theirs, against=against, target=target)


def main(
    megabytes: Annotated[int, typer.Option(help="Size of the adapter, in MiB.")] = 1024,
    rounds: Annotated[int, typer.Option(help="Of each way up and down.")] = 5,
    starts: Annotated[int, typer.Option(help="Ranges whose beginning is timed.")] = 100,
    json_file: JsonFile = None,
) -> None:
    """Measure adapters on their way up and down, and print a table."""
    with tempfile.TemporaryDirectory(prefix="basin-blobs-") as scratch:
        folder = Path(scratch)
        make_model_folder(folder / "models" / "tiny-llama")
        (folder / "adapter").mkdir()
        (folder / "served").mkdir()
        with (folder / "adapter" / "adapter_model.safetensors").open("wb") as file:
            for number in range(megabytes):
                file.write(random.Random(number).randbytes(MIB))
        packed = folder / "served" / "adapter.tar"
        with packed.open("wb") as file:
            for data in archive.pack(folder / "adapter"):
                file.write(data)
        with running(folder / "models") as cluster:
            bench = Bench(cluster, folder / "adapter", packed, folder)
            measure(bench, rounds=rounds, starts=starts)
        report(lines(bench.rounds, megabytes=bench.size / 1e6), json_file)


if __name__ == "__main__":
    typer.run(main)
