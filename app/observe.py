"""Notes each answer: a log line and a metric, by the route's template, and ids on its span."""

import time

import structlog
from opentelemetry import trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger()

QUIET = {"/healthz", "/readyz", "/metrics"}  # asked all the time: no log line, no span
UNMATCHED = "unmatched"
FAILED = 500


def is_quiet(scope: Scope) -> bool:
    """Tell whether a request is one of those that only look whether we live."""
    return scope.get("path") in QUIET


class Observed:
    """Times the way to the beginning of each answer: a stream or a download ends when it likes.

    Plain ASGI: streams pass untouched.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = await self._timed(scope, receive, send)
        if not is_quiet(scope):
            log.info(
                "request.answered",
                method=scope["method"],
                route=_route(scope),
                status=answer.status,
                ms=round(1000 * answer.seconds, 1),
            )

    async def _timed(self, scope: Scope, receive: Receive, send: Send) -> "_Answer":
        answer = _Answer()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.begins(int(message["status"]))
                _name_span(scope)
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            scope["app"].state.metrics.answered(
                method=scope["method"],
                route=_route(scope),
                status=answer.status,
                seconds=answer.seconds,
            )
        return answer


class _Answer:
    """When an answer began, and with what status; without one, the server says 500."""

    def __init__(self) -> None:
        self.status = FAILED
        self._asked_at = time.perf_counter()
        self._began_at: float | None = None

    def begins(self, status: int) -> None:
        self.status, self._began_at = status, time.perf_counter()

    @property
    def seconds(self) -> float:
        return (self._began_at or time.perf_counter()) - self._asked_at


def _route(scope: Scope) -> str:
    """Return the template of the route that a request took."""
    return str(getattr(scope.get("route"), "path", UNMATCHED))


def _name_span(scope: Scope) -> None:
    """Put what the logs know a request by on the span that FastAPI makes of it."""
    span = trace.get_current_span()
    span.set_attribute("basin.request_id", scope["state"]["request_id"])
    if job_id := scope.get("path_params", {}).get("job_id"):
        span.set_attribute("basin.job_id", job_id)
