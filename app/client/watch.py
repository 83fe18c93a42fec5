"""Tells what a job does while it does it, from its event stream."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from httpx_sse import EventSource, SSEError

from app.client.connection import Server
from app.client.errors import Unreachable

PATIENCE_S = 60.0  # without a word from the server
SILENCE = httpx.Timeout(45, connect=5)  # three times the pause between two signs of life
OVER = ("succeeded", "failed", "cancelled")
STREAM_KINDS = ("status", "metrics", "event", "done")


@dataclass(frozen=True)
class Update:
    """One piece of news: a job, an event, the metrics of a step, or that it is over."""

    kind: Literal["status", "metrics", "event", "done"]
    data: dict[str, Any]


def watch(server: Server, job_id: str) -> Iterator[Update]:
    """Yield what is known of a job, then what happens to it, until it is over.

    Where the stream breaks it goes on after the last message.

    Raises:
        Refused: there is no such job.
        Unreachable: the server has been away for a minute.
    """
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
