"""Tells what a job does while it does it: by its event stream, else by asking again and again."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from httpx_sse import EventSource, SSEError

from app.client.connection import Server
from app.client.errors import Refused, Unreachable

OVER = ("succeeded", "failed", "cancelled")
POLL_S = 1.0
PATIENCE_S = 60.0  # without a word from the server
SILENCE = httpx.Timeout(45, connect=5)  # three times the pause between two signs of life
STREAM_KINDS = ("status", "metrics", "event", "done")


@dataclass(frozen=True)
class Update:
    """One piece of news: a job, an event, the metrics of a step, or that it is over."""

    kind: Literal["status", "metrics", "event", "done"]
    data: dict[str, Any]


def watch(server: Server, job_id: str) -> Iterator[Update]:
    """Yield what is known of a job, then what happens to it, until it is over.

    Raises:
        Refused: there is no such job.
        Unreachable: the server has been away for a minute.
    """
    job = server.get(f"fine_tuning/jobs/{job_id}")
    yield Update("status", job)
    try:
        yield from _streamed(server, job_id)
    except Refused as error:
        if error.status != httpx.codes.NOT_FOUND:
            raise
        yield from _polled(server, job)


def _streamed(server: Server, job_id: str) -> Iterator[Update]:
    """Read the stream; where it breaks, go on after the last message."""
    last_id, heard_at, pause_s = "", time.monotonic(), 0.5
    while True:
        try:
            for message_id, update in _messages(server, job_id, last_id):
                last_id, heard_at, pause_s = message_id or last_id, time.monotonic(), 0.5
                yield update
                if update.kind == "done":
                    return
        except Unreachable:
            if time.monotonic() - heard_at > PATIENCE_S:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 10.0)


def _messages(server: Server, job_id: str, last_id: str) -> Iterator[tuple[str, Update]]:
    """Yield the messages of one connection with their ids, until it ends."""
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if last_id:
        headers["Last-Event-ID"] = last_id
    path = f"fine_tuning/jobs/{job_id}/stream"
    with server.stream(path, headers, timeout=SILENCE) as answer:
        try:
            for message in EventSource(answer).iter_sse():
                if message.event in STREAM_KINDS:
                    yield message.id, Update(message.event, json.loads(message.data))  # type: ignore[arg-type]  # one of these
        except SSEError as error:
            raise Unreachable(f"{server.url} sent no event stream: {error}.") from error


def _polled(server: Server, job: dict[str, Any]) -> Iterator[Update]:
    """Ask once a second; tell what is new."""
    seen, heard_at = Seen(job), time.monotonic()
    yield from seen.news(server, job)
    while seen.job["status"] not in OVER:
        time.sleep(POLL_S)
        try:
            now = server.get(f"fine_tuning/jobs/{job['id']}")
            news = list(seen.news(server, now))
        except Unreachable:
            if time.monotonic() - heard_at > PATIENCE_S:
                raise
            continue
        heard_at = time.monotonic()
        yield from news
    yield Update("done", {"status": seen.job["status"]})


class Seen:
    """What has been told of a job."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self._path = f"fine_tuning/jobs/{job['id']}"
        self._event: str | None = None
        self._steps: dict[int, dict[str, Any]] = {}

    def news(self, server: Server, job: dict[str, Any]) -> Iterator[Update]:
        """Return what is new of a job that was just read; nothing is told before all is there."""
        events = self._new_events(server)
        steps = self._new_steps(server)
        if job != self.job:
            yield Update("status", job)
        yield from (Update("event", event) for event in reversed(events))
        for step, values in steps:
            data = {"step": step, "attempt": job["attempt"], "values": values}
            yield Update("metrics", data)
        self.job = job
        self._steps.update(steps)
        if events:
            self._event = events[0]["id"]

    def _new_events(self, server: Server) -> list[dict[str, Any]]:
        """Return the events after the last one told, newest first."""
        found = []
        for event in server.pages(f"{self._path}/events", limit=None):
            if event["id"] == self._event:
                break
            found.append(event)
        return found

    def _new_steps(self, server: Server) -> list[tuple[int, dict[str, Any]]]:
        """Return the steps whose values are new; a run that went back takes some again."""
        steps: dict[int, dict[str, Any]] = {}
        for series in server.get(f"{self._path}/metrics")["data"]:
            for step, value in series["points"]:
                steps.setdefault(int(step), {})[series["name"]] = value
        return [
            (step, steps[step]) for step in sorted(steps) if self._steps.get(step) != steps[step]
        ]
