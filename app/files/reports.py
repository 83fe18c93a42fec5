"""Reports on files: made when they are first asked for, off the event loop, and kept."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app import blobs
from app.blobs import BlobGone
from app.db import Database
from app.errors import InvalidRequest, NotFound, Unavailable
from app.files import service as files
from app.files.report import Survey, report
from app.models.catalog import BaseModel
from app.tables import File, FileReport, Json

AT_ONCE = asyncio.Semaphore(2)  # a report takes a core and about 120 MiB
WAIT_S = 30.0  # for a turn
_own_turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


async def get(
    db: Database,
    organization_id: str,
    file_id: str,
    *,
    base: BaseModel | None,
    validation_file: str | None,
) -> Json:
    """Return the report on a training file, for a base model and beside a validation file.

    Raises:
        NotFound: no such file, or another tenant's.
        InvalidRequest: a file without rows to report on.
        Unavailable: others are being made, for longer than one may wait.
    """
    async with db.transaction() as tx:
        train = await _training_file(tx, organization_id, file_id)
        valid = None
        if validation_file:
            param = "validation_file"
            valid = await _training_file(tx, organization_id, validation_file, param=param)
        kept = await _kept(tx, train, valid, base)
    if kept is not None:
        return kept
    async with turn(organization_id):
        async with db.transaction() as tx:
            kept = await _kept(tx, train, valid, base)  # by who was before
        if kept is not None:
            return kept
        try:
            made = await _make(db, train, valid, base)
        except BlobGone as error:
            raise NotFound(f"{file_id} was deleted while it was read.") from error
        async with db.transaction() as tx:
            await _keep(tx, made, train, valid, base)
    return made


@asynccontextmanager
async def turn(organization_id: str) -> AsyncIterator[None]:
    """Let an organization make one report at a time, beside those of few others.

    Raises:
        Unavailable: its turn did not come within `WAIT_S`.
    """
    own = _own_turns.setdefault(organization_id, asyncio.Lock())
    async with AsyncExitStack() as held:
        try:
            async with asyncio.timeout(WAIT_S):
                await held.enter_async_context(own)
                await held.enter_async_context(AT_ONCE)
        except TimeoutError:
            message = "Other reports on files are being made; ask for this one again in a moment."
            raise Unavailable(message) from None
        yield


async def _training_file(
    tx: AsyncSession, organization_id: str, file_id: str, *, param: str | None = None
) -> File:
    file = await files.get(tx, organization_id, file_id, param=param)
    if file.rows is None:
        raise InvalidRequest(
            f"{file_id} was uploaded for {file.purpose!r}: there are reports on files uploaded as"
            f" {files.TRAINING_PURPOSE!r} alone.",
            param=param,
        )
    return file


async def _make(db: Database, train: File, valid: File | None, base: BaseModel | None) -> Json:
    beside = None
    if valid is not None:
        beside = await asyncio.to_thread(Survey, base, rows=valid.rows or 0)
        await _read(db, valid, beside)
    survey = await asyncio.to_thread(Survey, base, rows=train.rows or 0, validation=beside)
    await _read(db, train, survey)
    return await asyncio.to_thread(report, survey)


async def _read(db: Database, file: File, survey: Survey) -> None:
    async for data in blobs.read(db, file.blob_id):
        await asyncio.to_thread(survey.feed, data)
    await asyncio.to_thread(survey.finish)


async def _kept(
    tx: AsyncSession, train: File, valid: File | None, base: BaseModel | None
) -> Json | None:
    """Return a report made before, unless the base is newer, or the report older than lengths."""
    found = await tx.get(FileReport, _key(train, valid, base))
    if found is None or (base and found.created_at.timestamp() < base.created_at):
        return None
    tokens = found.report["tokens"]
    return found.report if tokens is None or "lengths" in tokens else None


async def _keep(
    tx: AsyncSession, made: Json, train: File, valid: File | None, base: BaseModel | None
) -> None:
    there = select(File.id).where(File.id == train.id).with_for_update(read=True, key_share=True)
    if await tx.scalar(there) is None:
        return
    file_id, model, validation_file_id = _key(train, valid, base)
    fresh = insert(FileReport).values(
        file_id=file_id, model=model, validation_file_id=validation_file_id, report=made
    )
    changes = {"report": fresh.excluded.report, "created_at": fresh.excluded.created_at}
    key = ["file_id", "model", "validation_file_id"]
    await tx.execute(fresh.on_conflict_do_update(index_elements=key, set_=changes))


def _key(train: File, valid: File | None, base: BaseModel | None) -> tuple[str, str, str]:
    return train.id, base.name if base else "", valid.id if valid else ""
