"""Follows answers while workers give them: pieces by notification, the row where one is missing."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import structlog
from pydantic import ValidationError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from app.db import Database
from app.errors import (
    ApiError,
    ContextTooLong,
    InvalidRequest,
    PreviewFailed,
    Unavailable,
    UnknownModel,
)
from app.previews import service
from app.previews.schemas import Ended, FinishReason
from app.previews.spec import PreviewState, Told
from app.tables import Preview

log = structlog.get_logger()

TICK_S = 1.0  # the caller is looked after so often, and the row of whom nothing is heard
AWAY_S = 15.0  # of a database that cannot be looked into: longer, and the caller is told
DATABASE_AWAY = (OperationalError, InterfaceError, NoConnectionFree)
ENDS: dict[str | None, type[ApiError]] = {
    error.code: error
    for error in (InvalidRequest, ContextTooLong, UnknownModel, PreviewFailed, Unavailable)
}


@dataclass(eq=False)
class Answer:
    """What is known of an answer so far; `look` says that the row knows more."""

    organization_id: str
    preview_id: str
    text: str = ""
    look: bool = False
    ended: Ended | None = None
    seen_at: float = field(default_factory=time.monotonic)  # the row
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, told: Told | None) -> None:
        """Take a piece that goes on where the text ends; else the row is to be looked at."""
        if told is None or not told.text or told.at > len(self.text):
            self.look = True
        else:
            self.text += told.text[len(self.text) - told.at :]
        self.changed.set()

    def read(self, row: Preview) -> None:
        """Take what the row knows.

        Raises:
            ApiError: it ended without an answer.
        """
        self.seen_at = time.monotonic()
        if len(row.text) > len(self.text):
            self.text = row.text
        if row.state == PreviewState.FAILED:
            error = ENDS.get(row.error_code, PreviewFailed)
            raise error(row.error_message or "The preview failed.", param=row.error_param)
        if row.state == PreviewState.CANCELLED:
            raise Unavailable("The preview was given up; ask again.")
        if row.state == PreviewState.DONE:
            self.ended = _ended(row)


class Previews:
    """The answers that this process waits for."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._answers: WeakValueDictionary[str, Answer] = WeakValueDictionary()
        self._leaving: set[asyncio.Task[None]] = set()

    def heard(self, payload: str | None) -> None:
        """Pass a notification on; None stands for any that may have been missed."""
        if payload is None:
            for answer in list(self._answers.values()):
                answer.hear(None)
            return
        try:
            told = Told.model_validate_json(payload)
        except ValidationError:  # of a newer release; the row is looked at anyway
            log.warning("preview.told_otherwise", payload=payload)
            return
        if (expected := self._answers.get(told.id)) is not None:
            expected.hear(told)

    def expect(self, organization_id: str, preview_id: str) -> Answer:
        """Listen for an answer from now on; ask for it afterwards, and nothing is missed."""
        answer = Answer(organization_id, preview_id)
        self._answers[preview_id] = answer
        return answer

    async def follow(self, answer: Answer) -> AsyncGenerator[str]:
        """Yield the text as it comes, and an empty piece each second without any.

        Afterwards `answer.ended` says how it ended. Whoever closes this before, ends the preview.

        Raises:
            ApiError: there is no answer.
        """
        sent, looked_at = 0, time.monotonic()
        try:
            while answer.ended is None or sent < len(answer.text):
                if sent < len(answer.text):
                    piece, sent = answer.text[sent:], len(answer.text)
                    yield piece
                    continue
                quiet = time.monotonic() - looked_at >= TICK_S
                if answer.look or quiet:
                    answer.look = False
                    await self._look(answer)
                    looked_at = time.monotonic()
                    if quiet:
                        yield ""
                else:
                    await _wait(answer.changed)
        finally:
            if answer.ended is None:
                self._leave(answer)

    async def close(self) -> None:
        """Wait until what was left is given up."""
        if self._leaving:
            await asyncio.wait(self._leaving)

    async def _look(self, answer: Answer) -> None:
        try:
            async with self._db.transaction() as tx:
                row = await service.look(tx, answer.organization_id, answer.preview_id)
        except DATABASE_AWAY as error:
            log.warning("preview.look_postponed", preview_id=answer.preview_id, error=str(error))
            if time.monotonic() - answer.seen_at > AWAY_S:
                raise Unavailable("The database is away; try again in a moment.") from error
        else:
            answer.read(row)

    def _leave(self, answer: Answer) -> None:
        """Give a preview up in a task of its own: the caller's is being cancelled."""
        task = asyncio.create_task(self._cancel(answer.organization_id, answer.preview_id))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _cancel(self, organization_id: str, preview_id: str) -> None:
        try:
            async with self._db.transaction() as tx:
                await service.cancel(tx, organization_id, preview_id)
        except DATABASE_AWAY as error:  # its worker goes on to the end, which nobody reads
            log.warning("preview.not_cancelled", preview_id=preview_id, error=str(error))


def _ended(row: Preview) -> Ended:
    assert row.prompt_tokens is not None and row.completion_tokens is not None
    reason: FinishReason = "stop" if row.finish_reason == "stop" else "length"
    return Ended(reason, row.prompt_tokens, row.completion_tokens)


async def _wait(changed: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(TICK_S):
            await changed.wait()
    changed.clear()
