"""From submitting a job to its first optimizer step, on an idle worker: warm against cold.

`python -m bench.first_step` starts a whole Basin of its own with one worker, and submits tiny jobs
by turns: one that finds a process with everything imported, and one whose waiting process was
killed just before, so that it starts as it would without. A step is timed twice: when the run
says that it took it, and when a client that watches the job's stream is told. `--json FILE` leaves
the lines.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import httpx
import psutil
import typer
from rich.console import Console

from bench.result import JsonFile, Line, Target, alone, compared, report
from tests.app.watching import Watch
from tests.chaos.cluster import Cluster, Worker, kill, running
from tests.factories import jsonl, make_model_folder
from tests.waiting import wait_until

Kind = Literal["warm", "cold"]
BODY = {
    "model": "tiny-llama",
    "seed": 7,
    "training": {"max_steps": 4, "checkpoint_steps": 4},
    "hyperparameters": {"batch_size": 4},
}
TARGET = Target(sign="≤", bound=1.5)
ROWS = 24
MIB = 1 << 20
STEPPED = "SELECT extract(epoch FROM min(ts)) FROM metrics WHERE job_id = %s AND step = 1"


@dataclass(frozen=True)
class Seconds:
    """From before the job was submitted to its first step: taken, and seen through the API."""

    taken: float
    seen: float


async def first_step(cluster: Cluster, training_file: str) -> Seconds:
    """Submit a job, watch it, and wait for its end."""
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{cluster.port}/v1",
        headers={"Authorization": f"Bearer {cluster.key}"},
        timeout=120,
    ) as client:
        body = BODY | {"training_file": training_file}
        submitted_at = time.time()
        made = await client.post("/fine_tuning/jobs", json=body)
        job_id = made.raise_for_status().json()["id"]
        watch = Watch(client, job_id)
        await watch.read_until(lambda: any(step == 1 for _, step in watch.steps()))
        seen_at = time.time()
        await watch.read()
    status = cluster.job(job_id)["status"]
    assert status == "succeeded", cluster.job(job_id)
    ((taken_at,),) = cluster.sql(STEPPED, job_id)
    return Seconds(float(taken_at) - submitted_at, seen_at - submitted_at)


def measure(cluster: Cluster, worker: Worker, kind: Kind, training_file: str) -> Seconds:
    """Time one job on a worker that has nothing else to do."""
    process = cluster.wait_for_warm(worker)
    if kind == "cold":
        kill(process)
        wait_until(lambda: not cluster.warm(worker), timeout_s=10)
    return asyncio.run(first_step(cluster, training_file))


def memory_bytes(process: psutil.Process) -> tuple[int, int]:
    """Return what a process takes in memory, and how much of that is its own alone."""
    found = process.memory_full_info()
    return found.rss, found.uss


def lines(times: Mapping[Kind, Sequence[Seconds]], rss: int, uss: int) -> list[Line]:
    """Return what was found, as lines of the benchmark table."""

    def line(what: str, pick: Callable[[Seconds], float], target: Target | None) -> Line:
        return compared(
            what,
            "s",
            ours=[pick(each) for each in times["warm"]],
            theirs=[pick(each) for each in times["cold"]],
            against="a cold process",
            target=target,
        )

    return [
        line("submit → first step taken", lambda each: each.taken, TARGET),
        line("submit → first step in the stream", lambda each: each.seen, None),
        alone("a waiting process, resident", "MiB", [rss / MIB]),
        alone("of that its own alone", "MiB", [uss / MIB]),
    ]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Jobs of each kind.")] = 7,
    json_file: JsonFile = None,
) -> None:
    """Time warm and cold starts by turns, after one of each that is not counted."""
    times: dict[Kind, list[Seconds]] = {"warm": [], "cold": []}
    with tempfile.TemporaryDirectory() as models, running(Path(models)) as cluster:
        make_model_folder(Path(models) / "tiny-llama")
        worker = cluster.start_worker()
        rss, uss = memory_bytes(cluster.wait_for_warm(worker))
        training_file = cluster.upload(jsonl(ROWS))
        for _ in range(rounds + 1):
            for kind, found in times.items():
                found.append(measure(cluster, worker, kind, training_file))
                Console().print(kind, found[-1])
    report(lines({kind: found[1:] for kind, found in times.items()}, rss, uss), json_file)


if __name__ == "__main__":
    typer.run(main)
