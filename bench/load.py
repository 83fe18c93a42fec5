"""Asks a server over HTTP/1.1 as many clients do, from a process of its own: `asked(...)`.

Every client keeps its connection and has one request under way. Without a rate each asks again as
soon as it is answered; with one, requests begin at random moments, so many a second on average, and
their latency counts from the moment that they were due: a server that falls behind cannot hide it.
The bytes are parsed in C and nothing is decoded: what it can ask for, against a route that does
nothing, stands beside every result.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import httptools

TIMEOUT_S = 120.0  # for all requests that are still under way in the end


@dataclass(frozen=True)
class Ask:
    """What one request asks for; a body is JSON."""

    path: str
    method: str = "GET"
    body: str = ""

    def bytes(self, *, port: int, key: str) -> bytes:
        """Return it as it is sent."""
        body = self.body.encode()
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        head += f"Authorization: Bearer {key}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return f"{head}\r\n".encode() + body


@dataclass(frozen=True)
class Load:
    """Who asks for what, and for how long; requests are taken in turn, from the first again."""

    port: int
    key: str
    asks: Sequence[Ask]
    seconds: float
    clients: int = 16
    a_second: float | None = None


@dataclass(frozen=True)
class Answers:
    """What was answered: how often, how fast, and with which statuses."""

    a_second: float
    p50_ms: float
    p99_ms: float
    statuses: dict[str, int]

    def require_ok(self) -> "Answers":
        """Return it where every answer was 200.

        Raises:
            RuntimeError: one was not: then this is no measurement.
        """
        if set(self.statuses) != {"200"}:
            raise RuntimeError(f"The server answered {self.statuses}.")
        return self


def asked(load: Load) -> Answers:
    """Send what is to be asked, in another process, and return how it was answered.

    Raises:
        RuntimeError: an answer was not 200, or the process failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        input=json.dumps(asdict(load)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Answers(**json.loads(done.stdout)).require_ok()


class Client(asyncio.Protocol):
    """One connection, and the request that is under way on it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[int] | None = None
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered and not self._answered.done():
            self._answered.set_exception(exc or ConnectionResetError("closed by the server"))

    def on_message_complete(self) -> None:
        assert self._answered is not None
        self._answered.set_result(self._parser.get_status_code())

    async def ask(self, request: bytes) -> int:
        """Return the status of the answer, once it is whole."""
        assert self._transport is not None
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered


@dataclass
class Noted:
    """What came of the requests so far."""

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    async def time(self, client: Client, request: bytes, *, since: float) -> None:
        status = await client.ask(request)
        self.latencies_s.append(time.perf_counter() - since)
        self.statuses[str(status)] += 1


async def run(load: Load) -> Answers:
    """Ask, and return how it was answered."""
    requests = [ask.bytes(port=load.port, key=load.key) for ask in load.asks]
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(Client, "127.0.0.1", load.port))[1]
        for _ in range(load.clients)
    ]
    noted, began = Noted(), time.perf_counter()
    async with asyncio.timeout(load.seconds + TIMEOUT_S):
        if load.a_second is None:
            await _as_fast_as_answered(load, clients, requests, noted)
        else:
            await _at_a_rate(load, load.a_second, clients, requests, noted)
    lasted_s = time.perf_counter() - began
    latencies_s = sorted(noted.latencies_s)
    p50, p99 = (latencies_s[round(q * (len(latencies_s) - 1))] for q in (0.5, 0.99))
    return Answers(
        a_second=len(noted.latencies_s) / lasted_s,
        p50_ms=1000 * p50,
        p99_ms=1000 * p99,
        statuses=dict(noted.statuses),
    )


async def _as_fast_as_answered(
    load: Load, clients: Sequence[Client], requests: Sequence[bytes], noted: Noted
) -> None:
    left = iter(range(1 << 62))
    until = time.perf_counter() + load.seconds

    async def keep_asking(client: Client) -> None:
        while (now := time.perf_counter()) < until:
            await noted.time(client, requests[next(left) % len(requests)], since=now)

    await asyncio.gather(*map(keep_asking, clients))


async def _at_a_rate(
    load: Load,
    a_second: float,
    clients: Sequence[Client],
    requests: Sequence[bytes],
    noted: Noted,
) -> None:
    """Begin requests at random moments; one that finds no client free waits for the first."""
    free: asyncio.Queue[Client] = asyncio.Queue()
    for client in clients:
        free.put_nowait(client)
    draw, under_way = random.Random(0), deque[asyncio.Task[None]]()

    async def one(request: bytes, due: float) -> None:
        client = await free.get()
        await noted.time(client, request, since=due)
        free.put_nowait(client)

    begin = due = time.perf_counter()
    number = 0
    while due < begin + load.seconds:
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        under_way.append(asyncio.create_task(one(requests[number % len(requests)], due)))
        number += 1
        due += draw.expovariate(a_second)
    await asyncio.gather(*under_way)


def main() -> None:
    """Read a load as JSON, and write the answers."""
    read = json.load(sys.stdin)
    load = Load(**read | {"asks": [Ask(**ask) for ask in read["asks"]]})
    json.dump(asdict(asyncio.run(run(load))), sys.stdout)


if __name__ == "__main__":
    main()
