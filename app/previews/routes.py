"""/v1/chat/completions and /v1/completions: a look at what a model says, no serving engine."""

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from app import audit
from app.db import Database
from app.errors import ApiError
from app.ids import new_id
from app.keys.service import Caller
from app.previews import service
from app.previews.live import Answer, Previews
from app.previews.schemas import (
    ChatCompletionOut,
    ChatIn,
    ChatWire,
    CompletionIn,
    CompletionOut,
    CompletionWire,
    Generation,
    Named,
    Wire,
)
from app.previews.spec import Question
from app.settings import ApiSettings
from app.web import Config, Db, EventStream, Writer, error_body

router = APIRouter(prefix="/v1", tags=["previews"])

FIRST_S = 20.0  # the status waits so long for a first word, and can then only be 200
KEEP_ALIVE_S = 15.0
KEEP_ALIVE, DONE = b": keep-alive\n\n", b"data: [DONE]\n\n"
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {EventStream.media_type: {}}}}


@dataclass(frozen=True)
class Desk:
    """Where a question is asked, and by whom."""

    request: Request
    db: Database
    caller: Caller
    settings: ApiSettings
    previews: Previews

    @property
    def headers(self) -> dict[str, str]:
        """Say in every answer that it is a preview, and within which limits."""
        limits = self.settings
        told = f"max_tokens={limits.preview_max_tokens}, timeout_s={limits.preview_timeout_s}"
        return {"x-basin-preview": told}


async def _desk(request: Request, db: Db, caller: Writer, settings: Config) -> Desk:
    return Desk(request, db, caller, settings, request.app.state.previews)


Asking = Annotated[Desk, Depends(_desk)]


@router.post("/chat/completions", response_model=ChatCompletionOut, responses=EVENTS)
async def create_chat_completion(body: ChatIn, desk: Asking) -> Response:
    """Try a model: let it go on with a conversation. A preview, with a cap on its length."""
    question = body.question(
        most_tokens=desk.settings.preview_max_tokens,
        asked_tokens=body.max_completion_tokens or body.max_tokens,
        messages=tuple(body.messages),
    )
    wire = ChatWire(new_id("chatcmpl-"), int(time.time()), body.model)
    return await _answer(desk, body, question, wire)


@router.post("/completions", response_model=CompletionOut, responses=EVENTS)
async def create_completion(body: CompletionIn, desk: Asking) -> Response:
    """Try a model: let it go on with a text. A preview, with a cap on its length."""
    question = body.question(
        most_tokens=desk.settings.preview_max_tokens,
        asked_tokens=body.max_tokens,
        prompt=body.prompt,
    )
    wire = CompletionWire(new_id("cmpl-"), int(time.time()), body.model)
    return await _answer(desk, body, question, wire)


async def _answer(
    desk: Desk, body: Generation, question: Question, wire: ChatWire | CompletionWire
) -> Response:
    answer = await _ask(desk, wire, question)
    pieces = desk.previews.follow(answer)
    try:
        if not body.stream:
            text = "".join([piece async for piece in _until_gone(desk.request, pieces)])
            return _whole(wire, text, answer, desk.headers)
        first = await _first(desk.request, pieces)
    except BaseException:
        await pieces.aclose()
        raise
    events = _events(wire, answer, first, pieces, include_usage=body.include_usage)
    response = EventStream(events)
    response.headers.update(desk.headers)
    return response


async def _ask(desk: Desk, wire: Named, question: Question) -> Answer:
    """Put the question down, in a transaction that is over before anybody waits."""
    organization_id = desk.caller.organization_id
    answer = desk.previews.expect(organization_id, wire.id)
    async with desk.db.transaction() as tx:
        audit.record(tx, desk.caller, "model.previewed", wire.model)
        await service.ask(
            tx,
            organization_id,
            desk.settings,
            preview_id=wire.id,
            model=wire.model,
            question=question,
        )
    return answer


async def _until_gone(request: Request, pieces: AsyncGenerator[str]) -> AsyncGenerator[str]:
    """Pass pieces on until the caller has hung up."""
    async for piece in pieces:
        if not piece and await request.is_disconnected():
            await pieces.aclose()
            return
        yield piece


async def _first(request: Request, pieces: AsyncGenerator[str]) -> str:
    """Wait for the first words: until then what goes wrong has a status of its own."""
    begins_at = time.monotonic() + FIRST_S
    async for piece in _until_gone(request, pieces):
        if piece or time.monotonic() >= begins_at:
            return piece
    return ""


def _whole(wire: Wire, text: str, answer: Answer, headers: dict[str, str]) -> Response:
    if answer.ended is None:  # the caller has hung up
        return Response(status_code=204)
    return JSONResponse(wire.whole(text, answer.ended).model_dump(), headers=headers)


async def _events(
    wire: Wire, answer: Answer, first: str, pieces: AsyncGenerator[str], *, include_usage: bool
) -> AsyncGenerator[bytes]:
    """Yield server-sent events; what goes wrong from here on is one of them."""
    more = {"usage": None} if include_usage else {}
    async with aclosing(pieces):
        for chunk in [*wire.first(), *([wire.piece(first)] if first else [])]:
            yield _event(chunk | more)
        sent_at = time.monotonic()
        try:
            async for piece in pieces:
                if piece:
                    yield _event(wire.piece(piece) | more)
                elif time.monotonic() - sent_at < KEEP_ALIVE_S:
                    continue
                else:
                    yield KEEP_ALIVE
                sent_at = time.monotonic()
        except ApiError as error:
            yield _event(error_body(error))
            return
    assert answer.ended is not None
    yield _event(wire.last(answer.ended) | more)
    if include_usage:
        yield _event(wire.usage(answer.ended))
    yield DONE


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"
