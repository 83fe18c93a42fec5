"""What is said of a job while it is said: metrics, events and status, to any number of watchers.

A watcher has a position, and asks for the page behind it; watchers at the same position share one
read of the database. A position is a pair of numbers that only grow with the commits of a job, so a
page never skips what is committed later, and whoever comes back with it misses nothing.
"""

import asyncio
import json
import math
import re
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import structlog
from sqlalchemy import Select, select
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database
from app.errors import InvalidRequest
from app.jobs import service
from app.jobs.schemas import event_out, job_out, number_out
from app.jobs.states import TERMINAL, JobStatus
from app.keys import service as keys
from app.tables import JobEvent, Metric

log = structlog.get_logger()

CHANNEL = "basin_jobs"  # what the triggers notify, with a job's id
STEPS_A_PAGE, EVENTS_A_PAGE = 200, 200
PAGES_KEPT = 4
READS_AT_ONCE = 4  # of the pool's connections; the others are for requests
STATUS_S = 1.0  # between two status messages
KEEP_ALIVE_S = 15.0
QUEUE_S = 5.0  # a place in the queue changes by what others do
AWAY_S = 1.0  # between two looks at a database that is away
LONGEST_S = 900.0  # then the watcher comes back
KEEP_ALIVE = b": keep-alive\n\n"
HELLO = b"retry: 1000\n\n"  # milliseconds
DATABASE_AWAY = (OperationalError, InterfaceError, NoConnectionFree)


@dataclass(frozen=True)
class Position:
    """How far a watcher has come: the last metrics and the last event that it was told."""

    metrics: int = 0
    events: int = 0

    @classmethod
    def parse(cls, cursor: str | None) -> "Position":
        """Read a message's id; without one, begin at the beginning.

        Raises:
            InvalidRequest: it is none of ours.
        """
        if not cursor:
            return cls()
        found = re.fullmatch(r"(\d{1,18})\.(\d{1,18})", cursor)
        if found is None:
            message = f"{cursor!r} is no id of a stream's message; leave it out to begin anew."
            raise InvalidRequest(message, param="after")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.metrics}.{self.events}"


@dataclass(frozen=True)
class Page:
    """What follows a position, ready to send, and the job as it was just before.

    `job` is its JSON; empty, like `status`, where the database did not answer.
    """

    body: bytes
    end: Position
    more: bool
    job: bytes
    status: JobStatus | None
    read_at: float

    @property
    def over(self) -> bool:
        """Whether nothing follows any more."""
        return self.status in TERMINAL and not self.more

    @property
    def good_for_s(self) -> float:
        """How long to believe it, while nothing is heard of the job."""
        if self.status is None:
            return AWAY_S
        return QUEUE_S if self.status == JobStatus.QUEUED else KEEP_ALIVE_S

    @property
    def stale_in_s(self) -> float:
        return self.read_at + self.good_for_s - time.monotonic()


@dataclass
class Watched:
    """A job with watchers, and the pages that they share until something is heard of it."""

    organization_id: str
    job_id: str
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    pages: dict[Position, asyncio.Task[Page]] = field(default_factory=dict)
    watchers: int = 0

    def look_again(self) -> None:
        """Have all watchers read anew."""
        self.pages.clear()
        self.changed.set()
        self.changed = asyncio.Event()

    def page(self, position: Position) -> asyncio.Task[Page] | None:
        """Return the read that goes on behind a position, or its result while it is fresh."""
        task = self.pages.get(position)
        if task is None or (task.done() and task.result().stale_in_s <= 0):
            return None
        return task

    def keep(self, position: Position, task: asyncio.Task[Page]) -> None:
        """Share a read; of those before, few are kept."""
        self.pages.pop(position, None)
        self.pages[position] = task
        for oldest in list(self.pages)[:-PAGES_KEPT]:
            del self.pages[oldest]


@dataclass
class Watcher:
    """One stream: where it is, and what it has shown."""

    position: Position
    shown: bytes = b""
    shown_at: float = -math.inf
    sent_at: float = -math.inf
    done: bool = False

    def take(self, page: Page) -> bytes:
        """Go to the end of a page; return what is to be sent, if anything."""
        status_first = self._status(page) if not self.shown else b""
        self.position = page.end
        parts = [status_first, page.body, self._status(page)]
        if page.over:
            self.done = True
            parts.append(_message("done", page.end, _dump({"status": page.status})))
        now = time.monotonic()
        body = b"".join(parts) or (KEEP_ALIVE if now - self.sent_at >= KEEP_ALIVE_S else b"")
        if body:
            self.sent_at = now
        return body

    def wait_s(self, page: Page) -> float:
        """Return how long to wait for news, in seconds."""
        now = time.monotonic()
        if page.more:
            return 0.0
        if page.job not in (b"", self.shown):
            return self.shown_at + STATUS_S - now
        return min(page.stale_in_s, self.sent_at + KEEP_ALIVE_S - now)

    def _status(self, page: Page) -> bytes:
        """Return the job where it has changed: at once at its end, else once a second at most."""
        now = time.monotonic()
        due = page.over or now - self.shown_at >= STATUS_S
        if not due or page.job in (b"", self.shown):
            return b""
        self.shown, self.shown_at = page.job, now
        return _message("status", self.position, page.job)


class Live:
    """The watchers of one process, by job."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._watched: dict[str, Watched] = {}
        self._turns = asyncio.Semaphore(READS_AT_ONCE)
        self._reading: set[asyncio.Task[Page]] = set()  # a loop alone lets go of its tasks

    @property
    def watchers(self) -> int:
        return sum(watched.watchers for watched in self._watched.values())

    def heard(self, job_id: str | None) -> None:
        """Let the watchers of a job look; None stands for all jobs."""
        for each in list(self._watched) if job_id is None else [job_id]:
            if each in self._watched:
                self._watched[each].look_again()

    async def watch(
        self, organization_id: str, job_id: str, position: Position, *, key_id: str | None = None
    ) -> AsyncGenerator[bytes]:
        """Yield server-sent events until the job is over, or the watcher should come back.

        With `key_id` they end when that key does, within a keep-alive.
        """
        watcher, ends_at = Watcher(position), time.monotonic() + LONGEST_S
        asked_at = time.monotonic()
        with self._watching(organization_id, job_id) as watched:
            yield HELLO
            while not watcher.done and time.monotonic() < ends_at:
                if key_id and time.monotonic() - asked_at >= KEEP_ALIVE_S:
                    if not await self._may_go_on(key_id):
                        return
                    asked_at = time.monotonic()
                changed = watched.changed
                page = await self._page(watched, watcher.position)
                if body := watcher.take(page):
                    yield body
                if not watcher.done:
                    await _wait(changed, watcher.wait_s(page))

    async def _may_go_on(self, key_id: str) -> bool:
        """Say whether a watcher's key is good; while the database is away, it is believed to be."""
        try:
            async with self._turns, self._db.transaction() as tx:
                return await keys.is_live(tx, key_id)
        except DATABASE_AWAY as error:
            log.warning("stream.key_not_asked", key_id=key_id, error=str(error))
            return True

    @contextmanager
    def _watching(self, organization_id: str, job_id: str) -> Iterator[Watched]:
        watched = self._watched.setdefault(job_id, Watched(organization_id, job_id))
        watched.watchers += 1
        try:
            yield watched
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                del self._watched[job_id]

    async def _page(self, watched: Watched, position: Position) -> Page:
        """Return what follows a position, read once for all who ask for it."""
        task = watched.page(position)
        if task is None:
            task = asyncio.create_task(self._read(watched, position))
            watched.keep(position, task)
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)
        # The read goes on when this watcher leaves: others wait for it.
        await asyncio.wait([task], timeout=KEEP_ALIVE_S)
        return task.result() if task.done() else _nothing(position)

    async def _read(self, watched: Watched, position: Position) -> Page:
        try:
            async with self._turns, self._db.transaction() as tx:
                return await read(tx, watched.organization_id, watched.job_id, position)
        except DATABASE_AWAY as error:
            log.warning("stream.postponed", job_id=watched.job_id, error=str(error))
            return _nothing(position)


async def read(tx: AsyncSession, organization_id: str, job_id: str, position: Position) -> Page:
    """Read the page behind a position: the job first, as what it is over with is there by then."""
    read_at = time.monotonic()
    job = await service.get(tx, organization_id, job_id)
    shown = job_out(job, await service.queue_place(tx, job)).model_dump_json().encode()
    events = list(await tx.scalars(_events_after(job_id, position)))
    end = Position(
        metrics=min(position.metrics + STEPS_A_PAGE, job.metric_seq),
        events=events[-1].seq if events else position.events,
    )
    body = _events(position, events)
    if end.metrics > position.metrics:
        body += _steps(end, await tx.execute(_metrics_between(job_id, position, end)))
    return Page(
        body=body,
        end=end,
        more=end.metrics < job.metric_seq or len(events) == EVENTS_A_PAGE,
        job=shown,
        status=job.status,
        read_at=read_at,
    )


def _events_after(job_id: str, position: Position) -> Select[JobEvent]:
    return (
        select(JobEvent)
        .where(JobEvent.job_id == job_id, JobEvent.seq > position.events)
        .order_by(JobEvent.seq)
        .limit(EVENTS_A_PAGE)
    )


def _metrics_between(
    job_id: str, position: Position, end: Position
) -> Select[int, int, int, str, float]:
    return (
        select(Metric.seq, Metric.attempt, Metric.step, Metric.name, Metric.value)
        .where(Metric.job_id == job_id, Metric.seq.between(position.metrics + 1, end.metrics))
        .order_by(Metric.seq, Metric.name)
    )


def _events(position: Position, events: Sequence[JobEvent]) -> bytes:
    return b"".join(
        _message(
            "event",
            Position(position.metrics, event.seq),
            event_out(event).model_dump_json().encode(),
        )
        for event in events
    )


def _steps(end: Position, rows: Iterable[Any]) -> bytes:
    """Put the values that were told together into one message."""
    messages = []
    for (seq, attempt, step), told in groupby(rows, key=lambda row: row[:3]):
        values = {row.name: number_out(row.value) for row in told}
        data = _dump({"step": step, "attempt": attempt, "values": values})
        messages.append(_message("metrics", Position(seq, end.events), data))
    return b"".join(messages)


def _nothing(position: Position) -> Page:
    """Stand in for a page that the database did not give."""
    return Page(b"", position, more=False, job=b"", status=None, read_at=time.monotonic())


def _dump(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()


def _message(event: str, position: Position, data: bytes) -> bytes:
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (str(position).encode(), event.encode(), data)


async def _wait(changed: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(max(timeout_s, 0)):
            await changed.wait()
