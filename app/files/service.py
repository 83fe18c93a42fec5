"""Files: checked while they arrive, stored whole or not at all."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app import blobs
from app.blobs import StoredBytes
from app.db import Database
from app.errors import FileInUse, FileTooLarge, InvalidFile, InvalidRequest, NotFound
from app.files.rows import RowChecker
from app.ids import new_id
from app.jobs.states import TERMINAL
from app.paging import Page, cut
from app.tables import File, Job

TRAINING_PURPOSE = "fine-tune"
RESULTS_PURPOSE = "fine-tune-results"
UPLOAD_PURPOSES = frozenset(
    {TRAINING_PURPOSE, "assistants", "batch", "evals", "user_data", "vision"}
)


@dataclass(frozen=True)
class Label:
    """What an upload calls itself; known once its bytes are through."""

    filename: str
    purpose: str | None


async def upload(
    db: Database,
    organization_id: str,
    stream: AsyncIterator[bytes],
    label: Callable[[], Label],
    *,
    max_bytes: int,
) -> File:
    """Store a file with constant memory; nothing of it stays when it is refused.

    Raises:
        FileTooLarge: more than `max_bytes`.
        InvalidFile: not training data; the message names the first offending lines.
        InvalidRequest: a purpose there is not.
    """
    checker = RowChecker()
    stored = await blobs.write(db, organization_id, _checked(stream, checker, max_bytes))
    try:
        told = label()
        _check_purpose(told.purpose)
        training = told.purpose == TRAINING_PURPOSE
        if training:
            _raise_problems(checker.finish())
        async with db.transaction() as tx:
            return await add(
                tx,
                organization_id,
                stored,
                filename=told.filename,
                purpose=told.purpose or "",
                rows=checker.rows if training else None,
                row_format=checker.format if training else None,
            )
    except BaseException:
        async with db.transaction() as tx:
            await blobs.remove(tx, stored.blob_id)
        raise


async def add(
    tx: AsyncSession,
    organization_id: str,
    stored: StoredBytes,
    *,
    filename: str,
    purpose: str,
    rows: int | None,
    row_format: str | None,
) -> File:
    """Give written bytes a name and an owner."""
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
    )
    tx.add(file)
    await tx.flush()
    await tx.refresh(file)
    return file


async def get(
    tx: AsyncSession, organization_id: str, file_id: str, *, param: str | None = None
) -> File:
    """Return a file of the caller's.

    Raises:
        NotFound: no such file, or another tenant's.
    """
    query = select(File).where(File.id == file_id, File.organization_id == organization_id)
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
    """Delete a file and its bytes.

    Raises:
        FileInUse: a job that is not over reads it.
        NotFound: no such file, or another tenant's.
    """
    file = await get(tx, organization_id, file_id)
    reads = (Job.training_file_id == file_id) | (Job.validation_file_id == file_id)
    query = select(Job.id).where(
        reads, Job.organization_id == organization_id, Job.status.not_in(TERMINAL)
    )
    job_id = (await tx.scalars(query.limit(1))).first()
    if job_id:
        raise FileInUse(f"{file_id} is being read by {job_id}; cancel that job first.")
    await tx.delete(file)
    await tx.flush()
    await blobs.remove(tx, file.blob_id)


async def _checked(
    stream: AsyncIterator[bytes], checker: RowChecker, max_bytes: int
) -> AsyncIterator[bytes]:
    """Pass a stream on while its rows are checked in a thread and its size is watched."""
    size = 0
    async for data in stream:
        size += len(data)
        if size > max_bytes:
            raise FileTooLarge(f"The file is larger than {max_bytes} bytes.", param="file")
        await asyncio.to_thread(checker.feed, data)
        yield data


def _check_purpose(purpose: str | None) -> None:
    if purpose not in UPLOAD_PURPOSES:
        known = ", ".join(sorted(UPLOAD_PURPOSES))
        raise InvalidRequest(f"Invalid purpose {purpose!r}; one of {known}.", param="purpose")


def _raise_problems(problems: list[str]) -> None:
    if problems:
        raise InvalidFile("The file is not training data. " + "; ".join(problems), param="file")
