"""Reads a job's stream as a client does, and breaks off where it is told to."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

JOBS = "/fine_tuning/jobs"
DONE = "done"


@dataclass(frozen=True)
class Message:
    id: str
    event: str
    data: dict[str, Any]


@dataclass
class Watch:
    """A client that comes back with the id of the last message that arrived whole."""

    http: httpx.AsyncClient
    job_id: str
    messages: list[Message] = field(default_factory=list)
    comments: int = 0
    connections: int = 0

    @property
    def is_done(self) -> bool:
        return bool(self.messages) and self.messages[-1].event == DONE

    def of(self, event: str) -> list[dict[str, Any]]:
        return [message.data for message in self.messages if message.event == event]

    def steps(self) -> list[tuple[int, int]]:
        """The attempt and step of every message with metrics, as they came."""
        return [(data["attempt"], data["step"]) for data in self.of("metrics")]

    async def read(self, *, cut_after_bytes: int | None = None) -> None:
        """Connect and read to the end, or until so many bytes have come."""
        left = cut_after_bytes
        self.connections += 1
        async for pieces in self._pieces():
            if left is not None and left < len(pieces):
                self._take(pieces[:left])
                return
            left = None if left is None else left - len(pieces)
            self._take(pieces)

    async def read_until(self, enough: Any) -> None:
        """Connect and read until a condition holds."""
        self.connections += 1
        async for pieces in self._pieces():
            self._take(pieces)
            if enough():
                return

    async def _pieces(self) -> AsyncIterator[bytes]:
        self._rest = b""
        headers = {"Last-Event-ID": self.messages[-1].id} if self.messages else {}
        async with self.http.stream("GET", f"{JOBS}/{self.job_id}/stream", headers=headers) as got:
            assert got.status_code == 200, await got.aread()
            assert got.headers["content-type"].startswith("text/event-stream")
            async for piece in got.aiter_raw():
                yield piece

    def _take(self, piece: bytes) -> None:
        """Keep the messages that are whole: an empty line ends each."""
        *whole, self._rest = (self._rest + piece).split(b"\n\n")
        for block in whole:
            lines = [line.partition(": ") for line in block.decode().split("\n")]
            fields = {name: value for name, _, value in lines if name}
            self.comments += any(not name for name, _, _ in lines)
            if "data" in fields:
                data = json.loads(fields["data"])
                self.messages.append(Message(fields["id"], fields["event"], data))
