"""What a fleet of runs asks of PostgreSQL: processor, log, and the time until all is stored.

`python -m bench.fleet` claims as many jobs as there are runs and stores for each, once a second,
what a supervisor stores: one transaction that renews the lease and writes metrics, progress and
events. The connections are few, as behind a pooler. What a batch costs hardly depends on how many
runs there are, so that the lines say how many a larger PostgreSQL carries.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import psutil
import typer
from rich.console import Console

from app.db import Database, connected
from app.jobs import lease
from app.jobs.lease import Claim
from app.jobs.spec import StepDone
from bench.filled import WAITING, Filled, filled
from bench.ingest import NAMES, claimed
from bench.result import JsonFile, Spread, alone, report

JOBS = 10_000  # that were before
CONNECTIONS = 16
KIB = 1 << 10
WAL = "SELECT pg_current_wal_insert_lsn() - '0/0'"


@dataclass
class Cost:
    """What the batches of some seconds cost."""

    took_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    log_bytes: float = 0.0


def main(
    runs: Annotated[int, typer.Option(min=1, max=WAITING // 2)] = 100,
    seconds: Annotated[int, typer.Option(min=1, help="Of each round.")] = 15,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of a run in a second.")] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    json_file: JsonFile = None,
) -> None:
    """Store what so many runs say, once a second each."""
    with filled(JOBS) as found:
        Console(stderr=True).log(f"{runs} runs, {steps} steps a second and run")
        costs = asyncio.run(measure(found, runs=runs, seconds=seconds, steps=steps, rounds=rounds))
    batches = [len(each.took_s) for each in costs]
    p95_ms = [1000 * float(np.quantile(each.took_s, 0.95)) for each in costs]
    each_ms = [1000 * each.cpu_s / count for each, count in zip(costs, batches, strict=True)]
    kib = [each.log_bytes / KIB / count for each, count in zip(costs, batches, strict=True)]
    carried = 1000 / Spread.of(each_ms).median
    report(
        [
            alone("batches stored", "1/s", [count / seconds for count in batches]),
            alone("p95 of a batch", "ms", p95_ms),
            alone("a batch: PostgreSQL's processor time", "ms", each_ms),
            alone("a batch: write-ahead log", "KiB", kib),
            alone("runs that one core of PostgreSQL's carries", "", [carried]),
        ],
        json_file,
        title=f"{runs} runs",
    )


async def measure(found: Filled, *, runs: int, seconds: int, steps: int, rounds: int) -> list[Cost]:
    """Claim the jobs, and store what they say for some rounds."""
    url = found.cluster.services.database_url
    async with connected(url, pool_size=CONNECTIONS, max_overflow=0) as db:
        held = [await claimed(db) for _ in range(runs)]
        return [
            await one_round(
                found, db, held, first=1 + number * seconds, seconds=seconds, steps=steps
            )
            for number in range(rounds)
        ]


async def one_round(
    found: Filled, db: Database, held: Sequence[Claim], *, first: int, seconds: int, steps: int
) -> Cost:
    """Store what all runs say in so many seconds, each at its own moment of a second."""
    cost, cpu_s, log_bytes = Cost(), processor_s(found), written(found)
    begins = time.monotonic() + 1
    async with asyncio.TaskGroup() as group:
        for number, each in enumerate(held):
            at = begins + number / len(held)
            group.create_task(
                tell(db, each, cost, at=at, first=first, seconds=seconds, steps=steps)
            )
    cost.cpu_s = processor_s(found) - cpu_s
    cost.log_bytes = written(found) - log_bytes
    return cost


async def tell(
    db: Database, held: Claim, cost: Cost, *, at: float, first: int, seconds: int, steps: int
) -> None:
    """Store what one run says, a second's steps at a time; when one is late, so is the next."""
    for second in range(first, first + seconds):
        await asyncio.sleep(at + second - first - time.monotonic())
        began = time.monotonic()
        said = [
            StepDone(at=time.time(), step=step, epoch=0.0, metrics=dict.fromkeys(NAMES, 0.5))
            for step in range((second - 1) * steps + 1, second * steps + 1)
        ]
        async with db.transaction() as tx:
            await lease.renew(tx, held)
            await lease.record(tx, held, said)
        cost.took_s.append(time.monotonic() - began)


def processor_s(found: Filled) -> float:
    """Return the processor time of PostgreSQL and of all that it forked, in seconds."""
    server = psutil.Process(found.cluster.servers["postgres"].process.pid)
    spent = sum(server.cpu_times()[:4])  # with that of the children that have ended
    for child in server.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            spent += sum(child.cpu_times()[:2])
    return spent


def written(found: Filled) -> float:
    """Return how long the write-ahead log has become, in bytes."""
    return float(found.cluster.sql(WAL)[0][0])


if __name__ == "__main__":
    typer.run(main)
