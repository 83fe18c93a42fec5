"""How many metric points a worker stores in a second, against one statement a point."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from app.db import Database
from app.jobs import lease
from app.jobs.lease import Claim
from app.jobs.spec import StepDone

POINTS_A_STEP, STEPS_A_BATCH = 10, 50  # a supervisor sends on what was told each second
NAMES = [f"metric_{number}" for number in range(POINTS_A_STEP)]
ONE = """
INSERT INTO metrics (job_id, name, step, attempt, seq, value, ts)
VALUES (%s, %s, %s, 1, %s, %s, now())
"""


async def claimed(db: Database) -> Claim:
    """Take a waiting job, as a worker does."""
    async with db.transaction() as tx:
        held = await lease.claim(tx, "bench", free=1)
    assert held is not None, "no job waits"
    return held


async def batched(db: Database, held: Claim, steps: Iterator[int], *, seconds: float) -> float:
    """Store batches as a supervisor does, and return the points of a second.

    Each batch is one transaction: the lease is renewed, and the metrics, the progress and a line of
    the job's story for each step are written.
    """
    points, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        said = [
            StepDone(at=time.time(), step=step, epoch=0.0, metrics=dict.fromkeys(NAMES, 0.5))
            for step in itertools.islice(steps, STEPS_A_BATCH)
        ]
        async with db.transaction() as tx:
            await lease.renew(tx, held)
            await lease.record(tx, held, said)
        points += len(said) * POINTS_A_STEP
    return points / (time.perf_counter() - began)


def one_by_one(
    connection: psycopg.Connection[Any], job_id: str, steps: Iterator[int], *, seconds: float
) -> float:
    """Store one point a statement, each its own transaction, and return those of a second."""
    points, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        step = next(steps)
        for name in NAMES:
            connection.execute(ONE, (job_id, name, step, step, 0.5))
        points += POINTS_A_STEP
    return points / (time.perf_counter() - began)
