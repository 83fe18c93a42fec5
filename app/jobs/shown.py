"""Jobs as they stand on the wire, kept for as long as their rows are the same.

What a job looks like depends on its row, and on who else waits: the row is turned into JSON once,
and the place in the queue is put into it each time. A row is the same while a hash of all its
columns is, which PostgreSQL makes: nothing has to be told that a job has changed.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Label, Row, literal_column

from app.jobs.schemas import QueueOut, job_out
from app.jobs.waits import Waiting, waiting
from app.tables import Job

MOST_KEPT = 4096  # of some 2 KiB
VERSION: Label[int] = literal_column(f"hash_record_extended({Job.__tablename__}, 0)").label(
    "version"
)


@dataclass(frozen=True)
class ShownJob:
    """A job on the wire, but for its place in the queue; `waiting` is None unless it waits."""

    id: str
    start: bytes
    waiting: Waiting | None

    def json(self, queue: QueueOut | None) -> bytes:
        """Return all of it."""
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
