"""The HTTP edge: what a route may ask for, and how an error leaves."""

import asyncio
import math
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import blobs
from app.blobs import StoredBytes
from app.broker import Bell
from app.db import Database
from app.errors import (
    ApiError,
    BodyTooLarge,
    ClientTooSlow,
    InvalidApiKey,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RangeNotSatisfiable,
    RateLimited,
    Unavailable,
)
from app.ids import new_id
from app.jobs.submissions import Request as Submission
from app.keys import service as keys
from app.observe import Observed
from app.rates import Buckets
from app.settings import ApiSettings
from app.streams import Streams
from app.vault import Vault

log = structlog.get_logger()
REQUEST_ID_HEADER = "x-request-id"
SEND_TIMEOUT_S = 30.0  # for a piece of a stream to leave
CLIENT_LEFT = 499  # as nginx counts who hangs up before the answer
LISTED = {"action", "name"}  # what a query may name several times
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]{0,18})-([0-9]{0,18})\s*")  # no file is longer
FORM_SLACK_BYTES = 64 << 10  # boundaries and the other fields of an upload
bearer = HTTPBearer(auto_error=False, description="A key made by `basin keys create`.")


async def _database(request: Request) -> Database:
    database: Database = request.app.state.db
    return database


async def _settings(request: Request) -> ApiSettings:
    settings: ApiSettings = request.app.state.settings
    return settings


async def _bell(request: Request) -> Bell:
    found: Bell = request.app.state.bell
    return found


async def _vault(request: Request) -> Vault:
    found: Vault = request.app.state.vault
    return found


Db = Annotated[Database, Depends(_database)]
Config = Annotated[ApiSettings, Depends(_settings)]
Ring = Annotated[Bell, Depends(_bell)]
Seal = Annotated[Vault, Depends(_vault)]


async def _transaction(request: Request) -> AsyncIterator[AsyncSession]:
    db: Database = request.app.state.db
    async with db.transaction() as tx:
        yield tx


async def _reading(request: Request) -> AsyncIterator[AsyncSession]:
    db: Database = request.app.state.db
    async with db.reading() as tx:
        yield tx


async def _caller(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> keys.Caller:
    """Say who asks."""
    door: keys.Door = request.app.state.door
    if credentials is None:
        raise InvalidApiKey("No API key. Send the header `Authorization: Bearer sk-…`.")
    caller = await door.authenticate(
        credentials.credentials,
        ip=request.client.host if request.client else None,
        request_id=request.state.request_id,
    )
    await _count(request, caller)
    _refuse_doubled(request)
    return caller


def _refuse_doubled(request: Request) -> None:
    """Refuse a query in which a name stands twice that may stand once: which value is meant?"""
    counts = Counter(name for name, _ in request.query_params.multi_items() if name not in LISTED)
    doubled = next((name for name, count in counts.items() if count > 1), None)
    if doubled is not None:
        raise InvalidRequest(f"{doubled!r} may stand in the query once.", param=doubled)


async def _count(request: Request, caller: keys.Caller) -> None:
    """Count one request of a key, and have every answer to it say what is left."""
    buckets: Buckets = request.app.state.buckets
    allowance = await buckets.take(caller.key_id)
    if allowance is None:
        return
    request.state.headers.update(
        {
            "x-ratelimit-limit-requests": str(allowance.per_minute),
            "x-ratelimit-remaining-requests": str(int(allowance.tokens)),
            "x-ratelimit-reset-requests": f"{allowance.full_after_s:.3f}s",
        }
    )
    if not allowance.allowed:
        wait_s = max(math.ceil(allowance.next_after_s), 1)
        raise RateLimited(
            f"This key may make {allowance.per_minute} requests a minute; ask again in {wait_s} s.",
            retry_after_s=wait_s,
        )


async def _writer(caller: Annotated[keys.Caller, Depends(_caller)]) -> keys.Caller:
    caller.require(keys.Scope.WRITE)
    return caller


async def _admin(caller: Annotated[keys.Caller, Depends(_caller)]) -> keys.Caller:
    caller.require(keys.Scope.ADMIN)
    return caller


async def _operator(caller: Annotated[keys.Caller, Depends(_caller)]) -> keys.Caller:
    caller.require(keys.Scope.OPERATOR)
    return caller


@dataclass(frozen=True)
class Repeat:
    """What names a request that may come twice; `again` says that the client sends it anew."""

    idempotency_key: str | None
    again: bool

    def submission(self, by: keys.Caller, body: BaseModel) -> Submission:
        """Return the request with what it asks for."""
        asked = body.model_dump_json(by_alias=True)
        return Submission(by, asked, idempotency_key=self.idempotency_key, again=self.again)


async def _repeat(
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="The same key and body are taken once, for 24 hours.",
        ),
    ] = None,
    x_stainless_retry_count: Annotated[str, Header(include_in_schema=False)] = "0",
) -> Repeat:
    counted = x_stainless_retry_count.isdecimal() and x_stainless_retry_count.strip("0") != ""
    return Repeat(idempotency_key, again=counted)


async def _hold_stream(
    request: Request, caller: Annotated[keys.Caller, Depends(_caller)]
) -> AsyncIterator[None]:
    """Hold a place among the uploads and downloads, until the last byte or the client has left."""
    streams: Streams = request.app.state.streams
    with streams.slot(caller.key_id):
        yield


async def _hold_watcher(
    request: Request, caller: Annotated[keys.Caller, Depends(_caller)]
) -> AsyncIterator[None]:
    """Hold a place among the event streams: they cost less, and last longer."""
    watchers: Streams = request.app.state.watchers
    with watchers.slot(caller.key_id):
        yield


# For routes whose request or answer takes long: `dependencies=[STREAM]`.
STREAM = Depends(_hold_stream)
WATCHER = Depends(_hold_watcher)
# scope="function": the commit is done before the response leaves.
Tx = Annotated[AsyncSession, Depends(_transaction, scope="function")]
# For routes that change nothing.
ReadTx = Annotated[AsyncSession, Depends(_reading, scope="function")]
# Who asks, and what their key must allow: to look, to change something, to administer,
# to operate: to administer every organization.
Caller = Annotated[keys.Caller, Depends(_caller)]
Writer = Annotated[keys.Caller, Depends(_writer)]
Admin = Annotated[keys.Caller, Depends(_admin)]
Operator = Annotated[keys.Caller, Depends(_operator)]
Limit = Annotated[int, Query(ge=0, le=100, description="How many at most.")]
After = Annotated[str | None, Query(description="The last id of the page before.")]
MayRepeat = Annotated[Repeat, Depends(_repeat)]


def downloads(media_type: str) -> dict[str, Any]:
    """Return what a route that answers with a blob is declared with."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {
        "response_class": Response,
        "dependencies": [STREAM],
        "responses": {
            200: {"description": "The bytes, with their sha256 as ETag.", "content": content},
            206: {"description": "One range of the bytes.", "content": content},
            304: {"description": "The bytes are those of the ETag in If-None-Match."},
            416: {"description": "The range is outside of the bytes."},
        },
    }


def blob_response(
    request: Request,
    db: Database,
    stored: StoredBytes,
    *,
    media_type: str,
    filename: str,
    window: tuple[int, int] | None = None,
) -> Response:
    """Answer with a blob: Content-Length, ETag (its sha256), one Range, If-None-Match and HEAD.

    `window` is the start and the length of a part of it, which is answered as if it were all.

    Raises:
        RangeNotSatisfiable: the range starts past the end.
    """
    first, size = window or (0, stored.size)
    etag = f'"{stored.sha256}-{first}"' if window else f'"{stored.sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{filename}"',
    }
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    if_range = request.headers.get("if-range")
    wanted = request.headers.get("range") if if_range in (None, etag) else None
    start, stop = parse_range(wanted, size)
    headers["Content-Length"] = str(stop - start)
    partial = (start, stop) != (0, size)
    if partial:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    status = 206 if partial else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    body = blobs.read(db, stored.blob_id, start=first + start, stop=first + stop)
    return StreamingResponse(body, status_code=status, headers=headers, media_type=media_type)


def parse_range(header: str | None, size: int) -> tuple[int, int]:
    """Return [start, stop) of one byte range (RFC 9110 §14.2); all, for what it does not know.

    Raises:
        RangeNotSatisfiable: the range lies outside the bytes.
    """
    match = RANGE.fullmatch(header or "")
    first, last = match.groups() if match else ("", "")
    if not (first or last):
        return 0, size
    if not first:
        start, stop = max(size - int(last), 0), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    if start >= stop:
        raise RangeNotSatisfiable(f"There are {size} bytes; the range {first}-{last} is outside.")
    return start, stop


class EventStream(StreamingResponse):
    """Server-sent events; who does not take what is sent within a while is let go."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        # A proxy that gathers before it passes on, or compresses, would hold the news back.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers)
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """Send what comes; whatever ends it, the generator is closed at once."""
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        async with aclosing(self._events) as events:
            async for chunk in events:
                try:
                    async with asyncio.timeout(SEND_TIMEOUT_S):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                except TimeoutError:  # nor would it take an end: the server closes the connection
                    log.info("stream.slow_watcher_left")
                    return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def form_body(required: Sequence[str], properties: Mapping[str, object]) -> dict[str, Any]:
    """Return what OpenAPI is told of a multipart body that a route reads by itself."""
    schema = {"type": "object", "required": list(required), "properties": dict(properties)}
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def declared_bytes(request: Request) -> int:
    """Return how long a request says its body is; 0 where it does not."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else 0


def error_body(error: ApiError) -> dict[str, Any]:
    """Return the envelope that OpenAI's client reads, all four keys always."""
    body = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    return {"error": body}


def error_response(error: ApiError) -> JSONResponse:
    """Render an error."""
    return JSONResponse(error_body(error), status_code=error.status, headers=error.headers)


def install(app: FastAPI) -> None:
    """Give an app the error envelope and a request id on every answer."""

    @app.exception_handler(ApiError)
    async def _named(_: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return error_response(InvalidRequest(_explain(first), param=_param(first)))

    @app.exception_handler(StarletteHTTPException)
    async def _http(request: Request, error: StarletteHTTPException) -> Response:
        response = error_response(_from_http(request, error))
        response.headers.update(error.headers or {})
        if error.status_code == MethodNotAllowed.status:
            response.headers["Allow"] = ", ".join(_allowed(request))
        return response

    @app.exception_handler(DataError)
    async def _not_storable(_: Request, error: DataError) -> Response:
        """PostgreSQL keeps no NUL in text; what is in range was checked before."""
        return error_response(InvalidRequest(f"A value cannot be stored: {error.orig}."))

    @app.exception_handler(OperationalError)
    @app.exception_handler(InterfaceError)
    @app.exception_handler(NoConnectionFree)
    async def _database_away(_: Request, error: Exception) -> Response:
        log.error("database.unreachable", error=str(error))
        return error_response(Unavailable("The database is away; try again in a moment."))

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> Response:
        log.exception("request.failed", path=request.url.path, exc_info=error)
        message = "Something went wrong on our side; the server's log has the details."
        body = {"message": message, "type": "server_error", "param": None, "code": "internal_error"}
        # Answered outside of all middleware, hence the header by hand.
        headers = {REQUEST_ID_HEADER: request.state.request_id}
        return JSONResponse({"error": body}, status_code=500, headers=headers)

    app.add_exception_handler(ClientDisconnect, _left)
    app.add_middleware(Observed)
    app.add_middleware(RequestId)


async def _left(request: Request, _: Exception) -> Response:
    """Note a client that hung up: no fault of ours, and nobody hears the answer."""
    log.info("request.abandoned", path=request.url.path)
    return Response(status_code=CLIENT_LEFT)


class RequestId:
    """Puts x-request-id on every answer and log line, and what `request.state.headers` holds.

    Plain ASGI: streams pass untouched.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = new_id("req_")
        headers = {REQUEST_ID_HEADER: request_id}
        scope.setdefault("state", {}).update(request_id=request_id, headers=headers)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in headers.items()]
                message["headers"] = [*message.get("headers", []), *ours]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)


def _param(error: dict[str, object]) -> str | None:
    location = error["loc"]
    assert isinstance(location, tuple)
    return ".".join(str(part) for part in location[1:]) or None


def _explain(error: dict[str, object]) -> str:
    where = _param(error) or "the request"
    if error["type"] == "extra_forbidden":
        return f"Unknown parameter: '{where}'. Remove it, or see /docs for those there are."
    if error["type"] == "json_invalid":
        return "The body is not valid JSON."
    if error["type"] == "missing":
        return f"Missing required parameter: '{where}'."
    return f"Invalid value for '{where}': {error['msg']}."


def _allowed(request: Request) -> list[str]:
    """Return what may be done with a path; the router itself names its first route's alone."""
    return [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] == Match.FULL
            for route in request.app.routes
        )
    ]


def _from_http(request: Request, error: StarletteHTTPException) -> ApiError:
    if error.status_code == NotFound.status:
        return NotFound(f"Unknown request URL: {request.method} {request.url.path}.")
    if error.status_code == MethodNotAllowed.status:
        return MethodNotAllowed(f"{request.url.path} knows no {request.method}.")
    refused_by_us = {kind.status: kind for kind in (BodyTooLarge, ClientTooSlow)}
    found = refused_by_us.get(error.status_code, InvalidRequest)(str(error.detail))
    found.status = error.status_code  # type: ignore[misc]  # whatever else the framework refuses
    return found
