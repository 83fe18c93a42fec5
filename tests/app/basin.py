"""Runs the `basin` command in this process, and a server that says what a test tells it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from app.cli import main
from tests.conftest import Api

WIDE = {"COLUMNS": "300", "TERM": "dumb"}


@dataclass(frozen=True)
class Basin:
    """The command, with a server and a key to it in its environment."""

    url: str
    key: str = "sk-none"

    def __call__(self, *arguments: str, code: int = 0, stdin: str | None = None) -> Result:
        """Run it, and look at its exit code."""
        env = WIDE | {"BASIN_URL": self.url, "BASIN_API_KEY": self.key, "BASIN_MODELS_DIR": None}
        result = CliRunner().invoke(main, list(arguments), env=env, input=stdin)
        assert result.exit_code == code, (result.exception, result.stdout, result.stderr)
        return result

    def json(self, *arguments: str, code: int = 0, stdin: str | None = None) -> Any:
        """Run it with --json; what it prints is one document and nothing else."""
        return json.loads(self(*arguments, "--json", code=code, stdin=stdin).stdout)

    def lines(self, *arguments: str, code: int = 0) -> list[Any]:
        """Run it with --json where each line is a document."""
        return [
            json.loads(line) for line in self(*arguments, "--json", code=code).stdout.splitlines()
        ]


def basin_of(api: Api, key: str) -> Basin:
    return Basin(api.url, key)


@dataclass
class Script:
    """Answers by path, in turn; the last one again and again. What was asked is kept."""

    answers: dict[str, list[bytes | dict[str, Any]]]
    asked: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)

    def answer(self, path: str) -> bytes | dict[str, Any] | None:
        left = self.answers.get(path.partition("?")[0])
        if not left:
            return None
        return left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def scripted(answers: dict[str, list[bytes | dict[str, Any]]]) -> Iterator[tuple[Basin, Script]]:
    """Serve a script: a dict is JSON, bytes are an event stream that ends the connection."""
    script = Script(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(None)

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            self._reply(json.loads(self.rfile.read(length) or b"null"))

        def _reply(self, body: Any) -> None:
            script.asked.append((self.command, self.path, dict(self.headers.items()), body))
            found = script.answer(self.path)
            data = found if isinstance(found, bytes) else json.dumps(found or NOT_FOUND).encode()
            kind = "text/event-stream" if isinstance(found, bytes) else "application/json"
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Say nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield Basin(f"http://127.0.0.1:{server.server_port}"), script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


NOT_FOUND = {"error": {"message": "Unknown request URL.", "type": "x", "param": None, "code": None}}
