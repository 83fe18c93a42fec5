"""A server that hears webhooks, in a thread of its own."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RECEIVER_HOST = "127.0.0.2"  # a loopback address that the tests' service may reach, alone


@dataclass(frozen=True)
class Heard:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """What was heard, and what is answered: each of `statuses` once, the last one from then on."""

    url: str = ""
    statuses: list[int] = field(default_factory=lambda: [200])
    heard: list[Heard] = field(default_factory=list)
    answer: bytes = b"thanks"
    headers: dict[str, str] = field(default_factory=dict)
    going_on: threading.Event = field(default_factory=threading.Event)  # cleared: it hangs

    def next_status(self) -> int:
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


@contextmanager
def receiving(
    *, host: str = RECEIVER_HOST, name: str | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.going_on.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {key.lower(): value for key, value in self.headers.items()}
            receiver.heard.append(Heard(self.path, headers, body))
            receiver.going_on.wait(30)
            self.send_response(receiver.next_status())
            for key, value in receiver.headers.items():
                self.send_header(key, value)
            self.send_header("content-length", str(len(receiver.answer)))
            self.end_headers()
            self.wfile.write(receiver.answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that hangs up is what some tests are about."""

    server = Server((host, 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    scheme = "https" if tls else "http"
    receiver.url = f"{scheme}://{name or host}:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.going_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
