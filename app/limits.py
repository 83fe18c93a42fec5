"""What a request may be: how large, how slow and how deep."""

import asyncio
import re
import time
from itertools import accumulate

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTooLarge, ClientTooSlow, HeadTooLarge, InvalidRequest
from app.web import declared_bytes, error_response

MAX_HEAD_BYTES = 32 << 10  # the request line and all headers
MAX_HEADERS = 100
MAX_BODY_BYTES = 4 << 20  # of a request that is no upload
MAX_JSON_DEPTH = 64
MIN_BYTES_PER_S = 1000  # what a client must send, or take, once its first patience is used up
STREAMED = re.compile("/v1/files|/v1/uploads/[^/]+/parts")  # these count for themselves

LONG_HEAD = (
    f"The request line and the headers are longer than {MAX_HEAD_BYTES} bytes, or more than"
    f" {MAX_HEADERS}."
)
LONG_BODY = f"The body is longer than {MAX_BODY_BYTES} bytes."
SLOW_BODY = "The body comes too slowly; send it again, on a better line."
DEEP_BODY = (
    f"The body nests lists and objects more than {MAX_JSON_DEPTH} deep; no request needs as much."
)

# A string that does not end is one up to the end: each byte is looked at once.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_OPENING, _CLOSING = b"[{", b"]}"
_STEPS = bytes.maketrans(_OPENING + _CLOSING, b"\2\2\0\0")
_NO_BRACKETS = bytes(set(range(256)) - set(_OPENING + _CLOSING))


def install(app: FastAPI, *, timeout_s: float) -> None:
    """Bound every request to an app; before the request id is installed, which refusals carry."""
    app.add_middleware(BodyLimit)
    app.add_middleware(SlowBody, timeout_s=timeout_s)
    app.add_middleware(HeadLimit)


class HeadLimit:
    """Refuses a request line and headers that are longer, or more, than anybody needs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and head_is_too_large(scope):
            await error_response(HeadTooLarge(LONG_HEAD))(scope, receive, send)
            return
        await self._app(scope, receive, send)


class SlowBody:
    """Refuses a body that stands still, or drips: a client that sends slowly costs as a fast one.

    It may keep silent for `timeout_s` in all, and for as long again as what it sent takes at
    `MIN_BYTES_PER_S`; but never for `timeout_s` at once. Only waiting for the client counts.
    """

    def __init__(self, app: ASGIApp, *, timeout_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size, waited_s, timed = 0, 0.0, True

        async def in_time() -> Message:
            nonlocal size, waited_s, timed
            if not timed:
                return await receive()
            left_s = self._timeout_s + size / MIN_BYTES_PER_S - waited_s
            began = time.monotonic()
            try:
                async with asyncio.timeout(min(left_s, self._timeout_s)):
                    message = await receive()
            except TimeoutError:
                raise StarletteHTTPException(ClientTooSlow.status, SLOW_BODY) from None
            waited_s += time.monotonic() - began
            size += len(message.get("body", b""))
            timed = bool(message.get("more_body"))
            return message

        async def answering(message: Message) -> None:
            nonlocal timed
            timed = False  # what is still awaited is the client's leaving
            await send(message)

        await self._app(scope, in_time, answering)


class BodyLimit:
    """Refuses bodies that would be held in memory whole and are longer, or deeper, than ours."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or STREAMED.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        if declared_bytes(Request(scope)) > MAX_BODY_BYTES:
            await error_response(BodyTooLarge(LONG_BODY))(scope, receive, send)
            return
        await self._app(scope, _whole(receive), send)


def _whole(receive: Receive) -> Receive:
    """Receive a body at once, when it is asked for, and look at it before anybody reads it."""
    complete = False

    async def whole() -> Message:
        nonlocal complete
        if complete:
            return await receive()
        body, complete, more = bytearray(), True, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return message
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY_BYTES:
                # FastAPI passes on its own kind of error, and hides any other that reading raises.
                raise StarletteHTTPException(BodyTooLarge.status, LONG_BODY)
        if await _is_too_deep(bytes(body)):
            raise StarletteHTTPException(InvalidRequest.status, DEEP_BODY)
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return whole


async def _is_too_deep(body: bytes) -> bool:
    if body.count(b"[") + body.count(b"{") <= MAX_JSON_DEPTH:
        return False
    return await asyncio.to_thread(depth, body) > MAX_JSON_DEPTH


def depth(body: bytes) -> int:
    """Return how many lists and objects JSON has open at once at most; of other bytes, no less."""
    brackets = _STRING.sub(b"", body).translate(_STEPS, _NO_BRACKETS)
    return max(accumulate((step - 1 for step in brackets), initial=0))


def head_is_too_large(scope: Scope) -> bool:
    """Return whether a request line and its headers are more than is taken."""
    headers = scope["headers"]
    size = len(scope["raw_path"]) + len(scope["query_string"])
    size += sum(len(name) + len(value) for name, value in headers)
    return size > MAX_HEAD_BYTES or len(headers) > MAX_HEADERS
