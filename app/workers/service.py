"""Workers that are alive, what each has free, and why a job waits for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.jobs.states import JobStatus
from app.tables import Job, Json, Worker

SILENCE_S = 30
TYPICAL_OF = 50  # the last jobs that finished
ALIVE = Worker.seen_at > func.now() - text(f"interval '{SILENCE_S} seconds'")

# Asked at each look at a job that waits, hence made once.
_ALIVE = select(*Worker.__table__.columns).where(ALIVE).order_by(Worker.hostname)
_LEASES = select(
    Job.worker,
    Job.id,
    Job.organization_id,
    Job.spec["resources"]["gpus"].as_integer(),
    Job.lease_until,
).where(Job.status == JobStatus.RUNNING)
_LASTED = (
    select(func.extract("epoch", Job.finished_at - Job.started_at).label("s"))
    .where(Job.status == JobStatus.SUCCEEDED, Job.started_at.is_not(None))
    .order_by(Job.finished_at.desc())
    .limit(TYPICAL_OF)
    .subquery()
)
_MEDIAN_S = select(func.percentile_cont(0.5).within_group(_LASTED.c.s))


@dataclass(frozen=True)
class Lease:
    """A job that a worker runs."""

    job_id: str
    organization_id: str
    devices: int
    until: datetime | None


@dataclass(frozen=True)
class Hardware:
    """What a device is; of a cpu slot the memory is the machine's, null is unknown."""

    name: str
    memory_bytes: int | None


@dataclass(frozen=True)
class Node:
    """A worker that was heard of lately; `devices` are its GPU indices, or cpu slots.

    `environments` are the names of those that agents can act in there.
    """

    id: str
    hostname: str
    devices: tuple[str, ...]
    started_at: datetime
    seen_at: datetime
    leases: tuple[Lease, ...]
    hardware: tuple[Hardware, ...] = ()
    environments: tuple[str, ...] = ()
    telemetry: Json = field(default_factory=dict)

    @property
    def free(self) -> int:
        return max(len(self.devices) - sum(lease.devices for lease in self.leases), 0)


async def alive(tx: AsyncSession | AsyncConnection) -> list[Node]:
    """Return the workers heard of in the last 30 s, with the jobs they run."""
    workers = list(await tx.execute(_ALIVE))
    leases: dict[str | None, list[Lease]] = {}
    for worker, *lease in await tx.execute(_LEASES) if workers else ():
        leases.setdefault(worker, []).append(Lease(*lease))
    return [
        Node(
            id=worker.id,
            hostname=worker.hostname,
            devices=tuple(worker.devices["all"]),
            started_at=worker.started_at,
            seen_at=worker.seen_at,
            leases=tuple(leases.get(worker.id, ())),
            hardware=tuple(Hardware(**each) for each in worker.devices.get("hardware", ())),
            environments=tuple(worker.devices.get("environments", ())),
            telemetry=worker.telemetry,
        )
        for worker in workers
    ]


def why_waiting(
    nodes: Sequence[Node],
    *,
    needed: int,
    ahead: int,
    retry_at: datetime | None = None,
    full: bool = False,
) -> str:
    """Say in a sentence why a job that needs so many devices does not run yet."""
    if full:
        return (
            "Your organization runs as many jobs at once as it may;"
            " this one can start when one of them ends."
        )
    if retry_at is not None and retry_at > datetime.now(UTC):
        return f"Its run was killed; it is tried again at {retry_at:%H:%M:%S} UTC."
    wanted = "1 device" if needed == 1 else f"{needed} devices"
    if not nodes:
        return "No worker is alive; start one with `basin worker`."
    largest = max(nodes, key=lambda node: len(node.devices))
    if len(largest.devices) < needed:
        return (
            f"It needs {wanted} of one worker, and the largest, {largest.hostname}, has"
            f" {len(largest.devices)}: it waits until there is a larger one."
        )
    if ahead:
        return f"{ahead} {'job is' if ahead == 1 else 'jobs are'} before it."
    freest = max(nodes, key=lambda node: node.free)
    if freest.free < needed:
        return f"It needs {wanted}, and {freest.hostname} has {freest.free} free."
    return "It is next, and starts within seconds."


async def median_duration_s(tx: AsyncSession | AsyncConnection) -> float | None:
    """Return how long the last finished jobs ran, in seconds; None before the first."""
    found = (await tx.execute(_MEDIAN_S)).scalar_one()
    return None if found is None else float(found)


def wait_s(
    nodes: Sequence[Node], *, needed: int, ahead: int, typical_s: float | None
) -> int | None:
    """Estimate the wait: full rounds of typical jobs before it, and half a one when none is free.

    None when no worker can hold the job, or no job has finished yet.
    """
    slots = sum(len(node.devices) // needed for node in nodes)
    if not slots or typical_s is None:
        return None
    free = sum(node.free // needed for node in nodes)
    rounds = 0.0 if ahead < free else (ahead - free) // slots + 0.5
    return round(rounds * typical_s)
