"""How long jobs wait, and why: their places in the queue, and the workers that there are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.db import Database
from app.jobs import queue
from app.jobs.queue import Place
from app.jobs.schemas import QueueOut
from app.jobs.states import JobStatus
from app.rounds import Rounds
from app.tables import Job
from app.workers import service as workers
from app.workers.service import Node


@dataclass(frozen=True)
class Waiting:
    """A job that waits, as far as its wait depends on it."""

    id: str
    gpus: int
    retry_at: datetime | None


def waiting(job: Job) -> Waiting | None:
    """Return what a job's wait depends on, if it waits."""
    if job.status != JobStatus.QUEUED:
        return None
    return Waiting(job.id, int(job.spec["resources"]["gpus"]), job.retry_at)


@dataclass(frozen=True)
class Sight:
    """The places of some jobs, the workers that are alive, and how long jobs take."""

    places: dict[str, Place]
    nodes: Sequence[Node]
    typical_s: float | None

    def of(self, jobs: Iterable[Waiting]) -> dict[str, QueueOut]:
        """Return how jobs wait, by their ids; without those that a worker took this moment."""
        return {
            job.id: self._queue_out(job, place)
            for job in jobs
            if (place := self.places.get(job.id)) is not None
        }

    def _queue_out(self, job: Waiting, place: Place) -> QueueOut:
        ahead = place.number - 1
        wait_s = workers.wait_s(self.nodes, needed=job.gpus, ahead=ahead, typical_s=self.typical_s)
        return QueueOut(
            position=place.number,
            ahead=ahead,
            eta_s=None if place.full else wait_s,
            reason=workers.why_waiting(
                self.nodes, needed=job.gpus, ahead=ahead, retry_at=job.retry_at, full=place.full
            ),
        )


async def see(tx: AsyncSession, job: Job) -> QueueOut | None:
    """Return how a job waits among all, if it does."""
    asked = waiting(job)
    if asked is None:
        return None
    return (await _look(tx, [job.id])).of([asked]).get(job.id)


class Lookout:
    """Looks at the queue for all who ask at the same time: what they see is the same."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._rounds = Rounds(self._look)

    async def see(self, jobs: Iterable[Waiting]) -> dict[str, QueueOut]:
        """Return how some jobs wait among all, by their ids."""
        asked = list(jobs)
        if not asked:
            return {}
        return (await self._rounds.ask(job.id for job in asked)).of(asked)

    async def see_one(self, job: Job) -> QueueOut | None:
        """Return how a job waits among all, if it does."""
        return (await self.see(filter(None, [waiting(job)]))).get(job.id)

    async def _look(self, job_ids: Sequence[str]) -> Sight:
        async with self._db.looking() as connection:
            return await _look(connection, list(set(job_ids)))


async def _look(tx: AsyncSession | AsyncConnection, job_ids: Sequence[str]) -> Sight:
    places = await queue.places(tx, job_ids)
    nodes = await workers.alive(tx)
    return Sight(places, nodes, await workers.median_duration_s(tx) if nodes else None)
