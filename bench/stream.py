"""How long a metric takes from the transaction that stores it to everybody who watches.

`python -m bench.stream --watchers 500` starts a PostgreSQL, a Redis and one API process of its own,
has so many clients watch one job (or `--jobs` of them), and stores steps as a supervisor does, once
a second a job. The delay runs from before the transaction to the receipt of the message; clients
and server share the machine, so it is an upper bound. Exits 1 when a watcher missed a step or got
one twice.
"""

import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from app.db import Database, connected
from app.jobs import lease
from app.jobs.lease import Claim
from app.jobs.spec import StepDone
from tests.app.watching import Watch
from tests.chaos.cluster import Cluster, running
from tests.factories import make_model_folder

BATCH_S = 1.0  # between two batches of a supervisor
METRICS_A_STEP = 8


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


async def tell(db: Database, held: Claim, *, steps: int, a_second: int) -> dict[int, float]:
    """Store steps as a supervisor does; return when each was about to be stored."""
    told = {}
    for first in range(1, steps + 1, a_second):
        batch = range(first, min(first + a_second, steps + 1))
        metrics = {f"metric_{number}": 1.0 for number in range(METRICS_A_STEP)}
        said = [StepDone(at=time.time(), step=step, epoch=0.0, metrics=metrics) for step in batch]
        told |= dict.fromkeys(batch, time.monotonic())
        async with db.transaction() as tx:
            await lease.renew(tx, held)
            await lease.record(tx, held, said)
        await asyncio.sleep(BATCH_S)
    async with db.transaction() as tx:
        await lease.cancel(tx, held)
    return told


async def measure(
    cluster: Cluster, *, watchers: int, jobs: int, seconds: int, a_second: int
) -> tuple[list[float], bool]:
    """Return the delays of all messages, in seconds, and whether every watcher was told all."""
    ids = [await asyncio.to_thread(cluster.submit) for _ in range(jobs)]
    async with (
        connected(cluster.services.database_url, pool_size=10) as db,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{cluster.port}/v1",
            headers={"Authorization": f"Bearer {cluster.key}"},
            timeout=120,
            limits=httpx.Limits(max_connections=None),
        ) as client,
    ):
        watches = [Timed(client, ids[number % jobs]) for number in range(watchers)]
        watching = asyncio.gather(*(watch.read() for watch in watches))
        while not all(watch.messages for watch in watches):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        claims = []
        for _ in ids:
            async with db.transaction() as tx:
                claims.append(await lease.claim(tx, "bench", free=1))
        steps = seconds * a_second
        told = await asyncio.gather(
            *(tell(db, held, steps=steps, a_second=a_second) for held in claims if held)
        )
        await watching
    when = {held.job_id: each for held, each in zip(claims, told, strict=True) if held}
    delays = [
        came - when[watch.job_id][step] for watch in watches for step, came in watch.came.items()
    ]
    whole = [(1, step) for step in range(1, steps + 1)]
    return delays, all(watch.steps() == whole for watch in watches)


def main(
    watchers: Annotated[int, typer.Option(help="Clients that watch.")] = 500,
    jobs: Annotated[int, typer.Option(help="Jobs that they watch, evenly.")] = 1,
    seconds: Annotated[int, typer.Option(help="How long steps are stored.")] = 30,
    a_second: Annotated[int, typer.Option(help="Steps that a run takes in a second.")] = 5,
) -> None:
    """Measure the delay from storing a step to every watcher's receipt."""
    with tempfile.TemporaryDirectory() as models, running(Path(models)) as cluster:
        make_model_folder(Path(models) / "tiny-llama")
        delays, whole = asyncio.run(
            measure(cluster, watchers=watchers, jobs=jobs, seconds=seconds, a_second=a_second)
        )
    table = Table("watchers", "jobs", "messages", "p50 ms", "p95 ms", "p99 ms", "max ms")
    shown = [f"{1000 * q:.0f}" for q in np.quantile(delays, [0.5, 0.95, 0.99, 1.0])]
    table.add_row(str(watchers), str(jobs), str(len(delays)), *shown)
    Console().print(table)
    if not whole:
        Console(stderr=True).print("A watcher missed a step, or got one twice.", style="red")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
