"""Runs the API: uvicorn, with bounds on what it takes from a client that is slow or means harm.

What is bounded here is what no application sees: a request whose head never ends, a client that
takes no answer, a connection too many. The rest is in `app.limits`.
"""

import argparse
import sys
from asyncio import TimerHandle, Transport
from dataclasses import dataclass
from typing import ClassVar

import structlog
import uvicorn
from pydantic import ValidationError
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.errors import ApiError, ClientTooSlow, HeadTooLarge, InvalidRequest, Unavailable
from app.ids import new_id
from app.limits import LONG_HEAD, MAX_HEAD_BYTES, MIN_BYTES_PER_S
from app.settings import ApiSettings, mistakes
from app.web import REQUEST_ID_HEADER, error_response

KEEP_ALIVE_S = 75  # longer than a proxy keeps its connections to us: nginx 60 s
GRACE_S = 5  # an open event stream would hold a graceful shutdown for ever

log = structlog.get_logger()


def main() -> None:
    """Serve the API with the settings of the environment, until a signal."""
    parser = argparse.ArgumentParser(prog="python -m app.serve", description=main.__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000)
    asked = parser.parse_args()
    try:
        settings = ApiSettings()
    except ValidationError as error:
        sys.exit("\n".join(mistakes(error)))
    bounds = Bounds(settings.client_timeout_s, settings.max_connections)
    uvicorn.run(
        "app.main:app_from_env",
        factory=True,
        host=asked.host,
        port=asked.port,
        http=bounded(bounds),
        ws="none",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )


@dataclass(frozen=True)
class Bounds:
    """How long a client may make the server wait, and how many may be connected."""

    timeout_s: float
    max_connections: int


class BoundedHttp(HttpToolsProtocol):
    """One connection, whose client is given a time for each thing that it has to do.

    A head must be complete in `timeout_s` and `MAX_HEAD_BYTES`; what is still sent after an answer
    must end in as long; and an answer must be taken at `MIN_BYTES_PER_S`.
    """

    bounds: ClassVar[Bounds]

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head, unless there are too many of us."""
        super().connection_made(transport)
        self._in_head = False
        self._unparsed = self._unsent = 0
        self._head_due: TimerHandle | None = None
        self._reader_due: TimerHandle | None = None
        if len(self.connections) > self.bounds.max_connections:
            self._refuse(Unavailable("The server has too many connections; try again soon."))
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; when it is part of a head, that is now due."""
        self._unparsed += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._unparsed > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(LONG_HEAD))
        elif self._head_due is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unparsed = 0
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0  # trailers have no other bound than that of a head
        super().on_body(body)

    def pause_writing(self) -> None:
        """Give the client its time to take what is written."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        if self._reader_due is not None:
            self._reader_due.cancel()
            self._reader_due = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in our own words."""
        self._refuse(InvalidRequest("This is not a request of HTTP/1.1."))

    def _await_head(self) -> None:
        self._head_due = self.loop.call_later(self.bounds.timeout_s, self._miss_head)

    def _miss_head(self) -> None:
        if self._in_head:
            self._refuse(ClientTooSlow("The headers took too long."))
        else:
            self._cancel_timers()
            self.transport.close()

    def _await_reader(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._reader_due = self.loop.call_later(self.bounds.timeout_s, self._look_at_reader)

    def _look_at_reader(self) -> None:
        taken = self._unsent - self.transport.get_write_buffer_size()
        if taken >= self.bounds.timeout_s * MIN_BYTES_PER_S:
            self._await_reader()
            return
        log.info("client.dropped", client=self.client, reason="takes its answer too slowly")
        self._cancel_timers()
        self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answer by ourselves, for the application will not, and close."""
        self._cancel_timers()
        if not self._awaits_answer:
            self.transport.abort()
            return
        response = error_response(error)
        headers = [*response.raw_headers, (REQUEST_ID_HEADER.encode(), new_id("req_").encode())]
        lines = [b"%s: %s\r\n" % header for header in headers if header[0] != b"connection"]
        head = [STATUS_LINE[response.status_code], *lines, b"connection: close\r\n\r\n"]
        self.transport.write(b"".join([*head, bytes(response.body)]))
        self.transport.close()

    @property
    def _awaits_answer(self) -> bool:
        """Whether an answer can be written: not into another, and not a second one."""
        cycle = self.cycle
        return (
            cycle is None
            or not cycle.response_started
            or (cycle.response_complete and self._in_head)
        )

    def _cancel_timers(self) -> None:
        for due in (self._head_due, self._reader_due):
            if due is not None:
                due.cancel()


def bounded(bounds: Bounds) -> type[BoundedHttp]:
    """Return the protocol with these bounds: uvicorn makes one a connection."""
    return type("BoundedHttp", (BoundedHttp,), {"bounds": bounds})


if __name__ == "__main__":
    main()
