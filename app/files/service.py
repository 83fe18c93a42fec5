"""Files: checked while they arrive, stored whole or not at all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, func, select, tuple_, update
from sqlalchemy import delete as delete_rows
from sqlalchemy.ext.asyncio import AsyncSession

from app import audit, blobs
from app.audit import Actor
from app.blobs import StoredBytes
from app.db import Database, from_now
from app.errors import FileInUse, FileTooLarge, InvalidFile, InvalidRequest, NotFound
from app.files.rows import RowChecker
from app.ids import new_id
from app.jobs.states import TERMINAL
from app.organizations import quotas
from app.paging import Page, cut
from app.tables import File, Job, Json

TRAINING_PURPOSE = "fine-tune"
RESULTS_PURPOSE = "fine-tune-results"
UPLOAD_PURPOSES = frozenset(
    {TRAINING_PURPOSE, "assistants", "batch", "evals", "user_data", "vision"}
)
MAX_FILENAME = 255


Adopt = Callable[[AsyncSession, File], Awaitable[None]]


@dataclass(frozen=True)
class Label:
    """What an upload calls itself; known once its bytes are through."""

    filename: str
    purpose: str | None
    lifetime_s: int | None = None


async def upload(
    db: Database,
    by: Actor,
    stream: AsyncIterator[bytes],
    label: Callable[[], Label],
    *,
    max_bytes: int,
    declared_bytes: int = 0,
    stored_already: bool = False,
    adopt: Adopt | None = None,
    purpose_so_far: Callable[[], str | None] = lambda: None,
) -> File:
    """Store a file with constant memory; nothing of it stays when it is refused.

    `adopt` says what else happens in the transaction in which the file appears. Where its purpose
    is known before its end, a file that cannot become good is refused early. What is stored already
    and goes away for it was counted when it came.

    Raises:
        QuotaExceeded: the organization has no room for it.
        FileTooLarge: more than `max_bytes`.
        InvalidFile: not training data; the message names the first offending lines.
        InvalidRequest: a purpose there is not.
    """
    if not stored_already:
        async with db.transaction() as tx:
            await quotas.check_stored(tx, by.organization_id, more_bytes=declared_bytes)
    checker = RowChecker()
    checked = _checked(stream, checker, max_bytes, purpose_so_far)
    stored = await blobs.write(db, by.organization_id, checked)
    try:
        told = label()
        check_purpose(told.purpose)
        check_filename(told.filename)
        if told.purpose == TRAINING_PURPOSE:
            _raise_problems(checker.finish())
        async with db.transaction() as tx:
            file = await _label(tx, by, stored, told, checker, stored_already=stored_already)
            if adopt is not None:
                await adopt(tx, file)
            return file
    except BaseException:
        async with db.transaction() as tx:
            await blobs.give_up(tx, stored.blob_id)
        raise


async def _label(
    tx: AsyncSession,
    by: Actor,
    stored: StoredBytes,
    told: Label,
    checker: RowChecker,
    *,
    stored_already: bool,
) -> File:
    """Add what was uploaded under its label, with what its rows are when it is to train on."""
    training = told.purpose == TRAINING_PURPOSE
    file = await add(
        tx,
        by.organization_id,
        stored,
        filename=told.filename,
        purpose=told.purpose or "",
        rows=checker.rows if training else None,
        row_format=checker.format if training else None,
        lifetime_s=told.lifetime_s,
        lint=checker.lint.as_json() if training else None,
        stored_already=stored_already,
    )
    audit.record(tx, by, "file.uploaded", file.id, {"bytes": file.size_bytes})
    return file


async def add(
    tx: AsyncSession,
    organization_id: str,
    stored: StoredBytes,
    *,
    filename: str,
    purpose: str,
    rows: int | None,
    row_format: str | None,
    lifetime_s: int | None = None,
    lint: Json | None = None,
    stored_already: bool = False,
) -> File:
    """Give written bytes a name and an owner.

    Raises:
        QuotaExceeded: the organization has no room for what it uploads; a run's results have it.
    """
    if purpose != RESULTS_PURPOSE and not stored_already:
        await quotas.check_stored(tx, organization_id, more_bytes=stored.size)
    await blobs.seal(tx, stored)
    file = File(
        id=new_id("file-"),
        organization_id=organization_id,
        blob_id=stored.blob_id,
        filename=filename,
        purpose=purpose,
        size_bytes=stored.size,
        sha256=stored.sha256,
        rows=rows,
        row_format=row_format,
        expires_at=None if lifetime_s is None else from_now(seconds=lifetime_s),
        lint=lint,
    )
    tx.add(file)
    await tx.flush()
    await tx.refresh(file)
    return file


async def get(
    tx: AsyncSession,
    organization_id: str,
    file_id: str,
    *,
    param: str | None = None,
    hold: bool = False,
) -> File:
    """Return a file of the caller's; with `hold`, nobody deletes it before this transaction ends.

    Raises:
        NotFound: no such file, or another tenant's.
    """
    query = select(File).where(File.id == file_id, File.organization_id == organization_id)
    if hold:
        query = query.with_for_update(read=True, key_share=True)
    file = (await tx.execute(query)).scalar_one_or_none()
    if file is None:
        raise NotFound(f"No such file: {file_id}.", param=param)
    return file


async def list_files(
    tx: AsyncSession,
    organization_id: str,
    *,
    purpose: str | None,
    after: str | None,
    limit: int,
    order: Literal["asc", "desc"],
) -> Page[File]:
    """Return a page of the caller's files."""
    key = tuple_(File.created_at, File.id)
    query = select(File).where(File.organization_id == organization_id)
    if purpose:
        query = query.where(File.purpose == purpose)
    if after:
        last = await get(tx, organization_id, after, param="after")
        cursor = tuple_(last.created_at, last.id)
        query = query.where(key < cursor if order == "desc" else key > cursor)
    ordering = (
        (File.created_at.desc(), File.id.desc()) if order == "desc" else (File.created_at, File.id)
    )
    rows = await tx.scalars(query.order_by(*ordering).limit(limit + 1))
    return cut(list(rows), limit)


async def delete(tx: AsyncSession, organization_id: str, file_id: str) -> None:
    """Delete a file, quickly: its bytes are let go of, and removed by the sweep.

    Raises:
        FileInUse: a job that is not over reads it.
        NotFound: no such file, or another tenant's.
    """
    mine = (File.id == file_id, File.organization_id == organization_id)
    if await tx.scalar(select(File.id).where(*mine).with_for_update()) is None:
        raise NotFound(f"No such file: {file_id}.")
    job_id = (await tx.scalars(_live_readers(file_id, organization_id).limit(1))).first()
    if job_id:
        raise FileInUse(f"{file_id} is being read by {job_id}; cancel that job first.")
    await _delete(tx, *mine)


async def delete_expired(tx: AsyncSession, *, retention_days: int | None, limit: int) -> int | None:
    """Delete some files past their time that no live job reads; None once there are no more.

    Over are those whose own expiry has passed and, unless None, those older than the retention.
    Safe when run twice at once.
    """
    over = File.expires_at < func.now()
    if retention_days is not None:
        over |= File.created_at < from_now(days=-retention_days)
    unread = ~_live_readers(File.id, File.organization_id).exists()
    some = select(File.id).where(over, unread).limit(limit)
    held = list(await tx.scalars(some.with_for_update(skip_locked=True)))
    # Asked again, as a job may have come between the look and the lock.
    return await _delete(tx, File.id.in_(held), unread) if held else None


def _live_readers(file_id: Any, organization_id: Any) -> Select[Any]:
    """The jobs that are not over and read a file."""
    return select(Job.id).where(
        (Job.training_file_id == file_id) | (Job.validation_file_id == file_id),
        Job.organization_id == organization_id,
        Job.status.not_in(TERMINAL),
    )


async def _delete(tx: AsyncSession, *which: ColumnElement[bool]) -> int:
    """Delete files that are locked; their jobs forget those that were results."""
    gone = (
        await tx.execute(
            delete_rows(File)
            .where(*which)
            .returning(File.id, File.organization_id, File.purpose, File.blob_id)
        )
    ).all()
    results = [file for file in gone if file.purpose == RESULTS_PURPOSE]
    if results:
        await tx.execute(
            update(Job)
            .where(
                Job.organization_id.in_({file.organization_id for file in results}),
                Job.result_file_id.in_([file.id for file in results]),
            )
            .values(result_file_id=None)
        )
    if gone:
        await blobs.discard(tx, *(file.blob_id for file in gone))
    return len(gone)


async def _checked(
    stream: AsyncIterator[bytes],
    checker: RowChecker,
    max_bytes: int,
    purpose_so_far: Callable[[], str | None],
) -> AsyncIterator[bytes]:
    """Pass a stream on while its rows are checked in a thread and its size is watched."""
    size = 0
    async for data in stream:
        size += len(data)
        if size > max_bytes:
            raise FileTooLarge(f"The file is larger than {max_bytes} bytes.", param="file")
        await asyncio.to_thread(checker.feed, data)
        if checker.given_up and purpose_so_far() == TRAINING_PURPOSE:
            _raise_problems(checker.problems)
        yield data


def check_filename(name: str, *, param: str = "file") -> None:
    """A name is only ever shown; one that cannot be is refused.

    Raises:
        InvalidRequest: it is too long, or holds control characters.
    """
    if len(name) > MAX_FILENAME or not name.isprintable():
        message = f"A filename has at most {MAX_FILENAME} characters, and no control characters."
        raise InvalidRequest(message, param=param)


def check_purpose(purpose: str | None) -> None:
    """Refuse a purpose that nobody can upload for.

    Raises:
        InvalidRequest: the message lists those there are.
    """
    if purpose not in UPLOAD_PURPOSES:
        known = ", ".join(sorted(UPLOAD_PURPOSES))
        raise InvalidRequest(f"Invalid purpose {purpose!r}; one of {known}.", param="purpose")


def _raise_problems(problems: list[str]) -> None:
    if problems:
        raise InvalidFile("The file is not training data. " + "; ".join(problems), param="file")
