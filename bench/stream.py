"""How long a step takes from the trainer that says it to everybody who watches.

`python -m bench.stream --watchers 500` starts a PostgreSQL, a Redis and one API process of its own,
and has so many clients watch one job (or `--jobs` of them). A process of its own says steps into
run folders as trainers do, and moves them into the database as supervisors do, once a second. The
delay runs from before a step is said to the receipt of its message; clients and server share the
machine, so it is an upper bound. Exits 1 when a watcher missed a step or got one twice.
"""

import asyncio
import json
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer
from rich.console import Console

from app.db import Database, connected
from app.jobs import lease
from app.jobs.spec import StepDone
from bench.result import JsonFile, Target, alone, report
from tests.app.watching import Watch
from tests.chaos.cluster import Cluster, running
from tests.factories import make_model_folder
from worker.relay import relay
from worker.run import Run
from worker.rundir import RunDir
from worker.supervisor import RELAY_S

METRICS_A_STEP = 8
MOST = Target(sign="≤", bound=1.5)

Said = dict[str, dict[int, float]]  # job → step → when, on the monotonic clock that all share


@dataclass
class Timed(Watch):
    """Notes when each step came."""

    came: dict[int, float] = field(default_factory=dict)

    def _take(self, piece: bytes) -> None:
        known = len(self.messages)
        super()._take(piece)
        now = time.monotonic()
        for message in self.messages[known:]:
            if message.event == "metrics":
                self.came[message.data["step"]] = now


async def train(db: Database, folder: Path, *, steps: int, a_second: int) -> Said:
    """Run the best waiting job as a worker does, with a trainer that only says steps."""
    async with db.transaction() as tx:
        claim = await lease.claim(tx, "bench", free=1)
    assert claim is not None
    run = Run(db, claim, RunDir(folder / claim.job_id), threading.Event())
    run.folder.path.mkdir()
    saying = asyncio.create_task(say(run.folder, steps=steps, a_second=a_second))
    while not saying.done():
        await asyncio.wait([saying], timeout=RELAY_S)
        await relay(run)
    async with db.transaction() as tx:
        await lease.cancel(tx, claim)
    return {claim.job_id: await saying}


async def say(folder: RunDir, *, steps: int, a_second: int) -> dict[int, float]:
    """Say steps at an even pace; return when each was."""
    said, metrics = {}, {f"metric_{number}": 1.0 for number in range(METRICS_A_STEP)}
    for step in range(1, steps + 1):
        said[step] = time.monotonic()
        folder.append_event(StepDone(at=time.time(), step=step, epoch=0.0, metrics=metrics))
        await asyncio.sleep(1 / a_second)
    return said


async def train_all(database_url: str, *, jobs: int, steps: int, a_second: int) -> Said:
    """Run all waiting jobs at once."""
    with tempfile.TemporaryDirectory() as folder:
        async with connected(database_url, pool_size=10) as db:
            runs = [train(db, Path(folder), steps=steps, a_second=a_second) for _ in range(jobs)]
            return {job: said for each in await asyncio.gather(*runs) for job, said in each.items()}


async def measure(
    cluster: Cluster, *, watchers: int, jobs: int, seconds: int, a_second: int
) -> tuple[list[float], bool]:
    """Return the delays of all messages, in seconds, and whether every watcher was told all."""
    ids = [await asyncio.to_thread(cluster.submit) for _ in range(jobs)]
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{cluster.port}/v1",
        headers={"Authorization": f"Bearer {cluster.key}"},
        timeout=120,
        limits=httpx.Limits(max_connections=None),
    ) as client:
        watches = [Timed(client, ids[number % jobs]) for number in range(watchers)]
        watching = asyncio.gather(*(watch.read() for watch in watches))
        while not all(watch.messages for watch in watches):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        said = await _train_elsewhere(cluster, jobs=jobs, seconds=seconds, a_second=a_second)
        await watching
    delays = [
        came - said[watch.job_id][step] for watch in watches for step, came in watch.came.items()
    ]
    whole = [(1, step) for step in range(1, seconds * a_second + 1)]
    return delays, all(watch.steps() == whole for watch in watches)


async def _train_elsewhere(cluster: Cluster, *, jobs: int, seconds: int, a_second: int) -> Said:
    """Run the jobs in a process of its own: the clients must not hold it up."""
    asked = {"--jobs": jobs, "--seconds": seconds, "--a-second": a_second}
    asked_s = [str(part) for pair in asked.items() for part in pair]
    argv = ["-m", "bench.stream", "--database-url", cluster.services.database_url, *asked_s]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *argv, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"The trainers' process ended with {process.returncode}.")
    said: dict[str, dict[str, float]] = json.loads(output)
    return {job: {int(step): when for step, when in steps.items()} for job, steps in said.items()}


def main(
    watchers: Annotated[int, typer.Option(help="Clients that watch.")] = 500,
    jobs: Annotated[int, typer.Option(help="Jobs that they watch, evenly.")] = 1,
    seconds: Annotated[int, typer.Option(help="How long steps are stored.")] = 30,
    a_second: Annotated[int, typer.Option(help="Steps that a run takes in a second.")] = 5,
    json_file: JsonFile = None,
    database_url: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure the delay from a step to every watcher's receipt."""
    pace = {"jobs": jobs, "a_second": a_second}
    if database_url:
        said = asyncio.run(train_all(database_url, steps=seconds * a_second, **pace))
        print(json.dumps(said))
        return
    with tempfile.TemporaryDirectory() as models, running(Path(models)) as cluster:
        make_model_folder(Path(models) / "tiny-llama")
        delays, whole = asyncio.run(measure(cluster, watchers=watchers, seconds=seconds, **pace))
    half, most, worst = np.quantile(delays, [0.5, 0.95, 1.0])
    lines = [
        alone("trainer to browser, p95", "s", [most], target=MOST),
        alone("trainer to browser, median", "s", [half]),
        alone("trainer to browser, the last of all", "s", [worst]),
    ]
    told = f"{len(delays):,} messages to {watchers} watchers of {jobs} jobs"
    report(lines, json_file, title=told)
    if not whole:
        Console(stderr=True).print("A watcher missed a step, or got one twice.", style="red")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
