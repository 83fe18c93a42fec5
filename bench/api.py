"""What the API and the database carry, with 1, 10 and 100 times as many rows.

`python -m bench.api` starts a PostgreSQL, a Redis and one API process of its own, fills the tables
with 1,000, 10,000 and 100,000 jobs (and 100 metric points and 10 events each) and measures each
time: how many requests a second are answered to 16 clients at once, how long they take at 200 a
second, how many jobs can be submitted and how many metric points stored. Keys are checked and
requests counted as ever, and every commit is on the disk before its answer.

The table is of the most rows; with several sizes it says too how much slower everything has become
since the fewest, and --picture draws it.
"""

import asyncio
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.db import connected
from bench import ingest
from bench.filled import MODEL, Filled, filled
from bench.load import Answers, Ask, Load, asked
from bench.result import JsonFile, Line, Target, alone, compared, report
from tests.chaos.cluster import JOBS

EMPTY = "an empty route"
POLLS = "status polls"
SUBMISSIONS = "jobs submitted"
SERIES = "100,000 points in 500 buckets"
INGEST = "metric points stored"
PACE = 200.0  # requests a second
WARM_UP_S = 0.5
FAST = Target(sign="≥", bound=800)
SOON = Target(sign="≤", bound=25)
# With n rows a tree is log n deep: 100 times as many as 1,000 are 5/3 as deep.
FLAT = Target(sign="≤", bound=5 / 3, of="ratio")

console = Console(stderr=True)


@dataclass
class Measured:
    """What was measured with so many jobs, by what it is of: a value a round."""

    jobs: int
    rates: dict[str, list[float]] = field(default_factory=dict)
    p50_ms: dict[str, list[float]] = field(default_factory=dict)
    p99_ms: dict[str, list[float]] = field(default_factory=dict)
    raw_ms: list[float] = field(default_factory=list)
    one_by_one: list[float] = field(default_factory=list)

    def cost_ms(self) -> dict[str, list[float]]:
        """Return how long each takes, by round: for one client, or by what is done in a second."""
        done = {what: self.rates[what] for what in (SUBMISSIONS, INGEST)}
        return self.p50_ms | {what: [1000 / rate for rate in rates] for what, rates in done.items()}


def main(
    jobs: Annotated[list[int] | None, typer.Option(help="How many; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of everything, in turn.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each measurement.")] = 2.0,
    picture: Annotated[Path | None, typer.Option(help="Draw the growth here.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure requests, submissions and metrics with more and more rows."""
    sizes = sorted(jobs or [1_000, 10_000, 100_000])
    measured = []
    with filled(sizes[0]) as found:
        for size in sizes:
            console.log(f"{size:,} jobs, {size * 100:,} metric points")
            found.grow(size)
            measured.append(measure(found, rounds=rounds, seconds=seconds))
    lines = [*of_most(measured[-1]), *of_growth(measured)]
    report(lines, json_file, title=f"API and database, {sizes[-1]:,} jobs")
    if picture is not None:
        from bench.growth import draw  # noqa: PLC0415  the rest needs no matplotlib

        draw({each.jobs: each.cost_ms() for each in measured}, picture)


def measure(found: Filled, *, rounds: int, seconds: float) -> Measured:
    """Measure everything in turn, so often."""
    measured = Measured(found.jobs)
    reads = routes(found)
    steps = itertools.count(1)
    for asks in reads.values():  # uncounted: connections are made, statements prepared
        _load(found, asks, WARM_UP_S)
    for number in range(rounds):
        console.log(f"  round {number + 1} of {rounds}")
        for what, asks in reads.items():
            _add(measured.rates, what, _load(found, asks, seconds).a_second)
            _add(measured.p99_ms, what, _load(found, asks, seconds, a_second=PACE).p99_ms)
            _add(measured.p50_ms, what, _load(found, asks, seconds / 2, clients=1).p50_ms)
        _read_curve(found, measured, seconds)
        submitted = _load(found, submissions(found, f"{found.jobs}-{number}"), seconds)
        _add(measured.rates, SUBMISSIONS, submitted.a_second)
        found.forget_submitted()
        asyncio.run(_store(found, measured, steps, seconds))
    return measured


def routes(found: Filled) -> dict[str, list[Ask]]:
    """Return what is asked for, by what it is."""
    running, over = found.paths("running"), found.paths("succeeded")
    jobs = f"/v1{JOBS}"
    asks = {
        EMPTY: ["/healthz"],
        POLLS: [*running * (len(over) // max(len(running), 1)), *over],
        "polls of waiting jobs": found.paths("queued"),
        "lists of 20 jobs": [jobs],
        "lists by status": [f"{jobs}?status=failed"],
        "lists by metadata of many": [f"{jobs}?metadata[team]=team-{n}" for n in range(7)],
        "lists by metadata of one": [f"{jobs}?metadata[run]={n}" for n in range(1, 1000, 10)],
        "lists of 20 events": [f"{path}/events" for path in over],
    }
    return {what: [Ask(path) for path in paths] for what, paths in asks.items()}


def submissions(found: Filled, name: str) -> list[Ask]:
    """Return requests for jobs of which no two are alike."""
    body = {"model": MODEL, "training_file": found.training_file}
    return [
        Ask(f"/v1{JOBS}", "POST", json.dumps(body | {"suffix": f"{name}-{number}"}))
        for number in range(20_000)
    ]


def of_most(measured: Measured) -> Iterator[Line]:
    """Yield the lines of the table proper."""
    empty = measured.rates[EMPTY]
    for what, rates in measured.rates.items():
        if what in (EMPTY, SUBMISSIONS, INGEST):
            continue
        yield compared(what, "1/s", ours=rates, theirs=empty, against=EMPTY, target=FAST)
        yield alone(f"p99 of {what}, 200/s", "ms", measured.p99_ms[what], target=SOON)
    yield alone(SUBMISSIONS, "1/s", measured.rates[SUBMISSIONS], target=Target(sign="≥", bound=150))
    yield compared(
        SERIES,
        "ms",
        ours=measured.p50_ms[SERIES],
        theirs=measured.raw_ms,
        against="all of them",
        target=Target(sign="≤", bound=50),
    )
    yield compared(
        INGEST,
        "1/s",
        ours=measured.rates[INGEST],
        theirs=measured.one_by_one,
        against="one by one",
        target=Target(sign="≥", bound=30_000),
    )


def of_growth(measured: Sequence[Measured]) -> Iterator[Line]:
    """Yield how much longer each takes with the most rows than with the fewest."""
    fewest, most = measured[0], measured[-1]
    if fewest is most:
        return
    before = fewest.cost_ms()
    for what, costs in most.cost_ms().items():
        if what != EMPTY:
            yield compared(
                f"{what}: time with {most.jobs:,} jobs",
                "ms",
                ours=costs,
                theirs=before[what],
                against=f"{fewest.jobs:,}",
                target=FLAT,
            )


def _read_curve(found: Filled, measured: Measured, seconds: float) -> None:
    """Read the long curve in buckets and whole, by one client."""
    of = f"{found.curve}/metrics?name=train_loss"
    few, all_of_them = [Ask(f"{of}&agg=minmax&points=500")], [Ask(of)]
    _add(measured.p50_ms, SERIES, _load(found, few, seconds, clients=1).p50_ms)
    measured.raw_ms.append(_load(found, all_of_them, seconds, clients=1).p50_ms)


async def _store(found: Filled, measured: Measured, steps: Iterator[int], seconds: float) -> None:
    """Store metrics as a worker does, and one by one."""
    async with connected(found.cluster.services.database_url) as db:
        held = await ingest.claimed(db)
        stored = await ingest.batched(db, held, steps, seconds=seconds)
    _add(measured.rates, INGEST, stored)
    with found.connect() as connection:
        one = ingest.one_by_one(connection, held.job_id, steps, seconds=seconds)
    measured.one_by_one.append(one)


def _load(
    found: Filled,
    asks: Sequence[Ask],
    seconds: float,
    *,
    clients: int = 16,
    a_second: float | None = None,
) -> Answers:
    cluster = found.cluster
    return asked(Load(cluster.port, cluster.key, asks, seconds, clients, a_second))


def _add(values: dict[str, list[float]], what: str, value: float) -> None:
    values.setdefault(what, []).append(value)


if __name__ == "__main__":
    typer.run(main)
