"""Jobs as they stand on the wire, kept for as long as their rows are the same.

What a job looks like depends on its row, and on who else waits: the row is turned into JSON once,
and the place in the queue is put into it each time. A row is the same while a hash of all its
columns is, which PostgreSQL makes: nothing has to be told that a job has changed.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import Label, Row, Text, bindparam, func, literal_column, select
from sqlalchemy.dialects.postgresql import ARRAY

from app.db import Database
from app.ids import is_readable
from app.jobs.schemas import QueueOut, job_out
from app.jobs.waits import Lookout, Waiting, waiting
from app.rounds import Rounds
from app.tables import Job

MOST_KEPT = 4096  # of some 2 KiB
VERSION: Label[int] = literal_column(f"hash_record_extended({Job.__tablename__}, 0)").label(
    "version"
)
# Of several tenants' jobs at once: what is found is kept apart by owner and id, as it was asked.
_OWN = (
    select()
    .add_columns(Job.id, Job.organization_id, VERSION)
    .where(
        Job.id == func.any(bindparam("ids", type_=ARRAY(Text))),
        Job.organization_id == func.any(bindparam("owners", type_=ARRAY(Text))),
    )
)


@dataclass(frozen=True)
class ShownJob:
    """A job on the wire, but for its place in the queue; `waiting` is None unless it waits."""

    id: str
    start: bytes
    waiting: Waiting | None

    def json(self, places: Mapping[str, QueueOut]) -> bytes:
        """Return all of it, with its place among those of some jobs that wait."""
        queue = places.get(self.id)
        place = b"null" if queue is None else queue.model_dump_json().encode()
        return b'%b,"queue":%b}' % (self.start, place)


class Kept:
    """The jobs that were shown last, by id; each as it was when its row had a certain hash."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most
        self._kept: OrderedDict[str, tuple[int, ShownJob]] = OrderedDict()

    def find(self, looks: Sequence[Row[Any]]) -> list[ShownJob] | None:
        """Return the jobs that were looked at, or None where one is not kept as it is now."""
        found = []
        for look in looks:
            version, shown = self._kept.get(look.id, (None, None))
            if shown is None or version != look.version:
                return None
            self._kept.move_to_end(look.id)
            found.append(shown)
        return found

    def show(self, job: Job, version: int) -> ShownJob:
        """Turn a row into JSON, and keep that."""
        start = job_out(job).model_dump_json(exclude={"queue"}).encode().removesuffix(b"}")
        shown = ShownJob(job.id, start, waiting(job))
        self._kept[job.id] = (version, shown)
        self._kept.move_to_end(job.id)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return shown


class Looks:
    """Finds out whether jobs are as they were, for all who ask at the same time."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._rounds = Rounds(self._look)

    async def one(self, organization_id: str, job_id: str) -> Row[Any] | None:
        """Return a job's id and version, if it is one of this organization's."""
        if not is_readable(job_id):  # none that was made, and it would end a round of others
            return None
        own = (organization_id, job_id)
        return (await self._rounds.ask([own])).get(own)

    async def _look(self, asked: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Row[Any]]:
        owners, ids = (list(set(each)) for each in zip(*asked, strict=True))
        async with self._db.looking() as connection:
            found = await connection.execute(_OWN, {"owners": owners, "ids": ids})
        return {(look.organization_id, look.id): look for look in found}


@dataclass(frozen=True)
class Showing:
    """What showing jobs takes: those that are kept, whether they are so still, and the queue."""

    kept: Kept
    looks: Looks
    lookout: Lookout

    @classmethod
    def of(cls, db: Database) -> Self:
        """Keep none yet."""
        return cls(Kept(), Looks(db), Lookout(db))

    async def places(self, jobs: Iterable[ShownJob]) -> dict[str, QueueOut]:
        """Return how those of some jobs wait that do, by their ids."""
        return await self.lookout.see(job.waiting for job in jobs if job.waiting)
