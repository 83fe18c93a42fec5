"""Uploads: a large file in parts, which may come in any order and several at once."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, cast

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import audit, blobs
from app.audit import Actor
from app.blobs import BlobGone
from app.db import Database, from_now
from app.errors import FileTooLarge, InvalidFile, InvalidRequest, InvalidUploadState, NotFound
from app.files import service as files
from app.files.service import Label
from app.ids import new_id
from app.organizations import quotas
from app.tables import File, Upload, UploadPart

PART_BYTES = 64 << 20
MAX_PARTS = 10_000
LIFETIME_S = 3600
GRACE_S = 3600  # an upload that expires while it is being completed keeps its parts so long

Status = Literal["pending", "completed", "cancelled", "expired"]


@dataclass(frozen=True)
class NewUpload:
    """What a caller says of a file before its first part."""

    filename: str
    mime_type: str
    purpose: str
    size_bytes: int
    file_lifetime_s: int | None


async def create(
    tx: AsyncSession, organization_id: str, asked: NewUpload, *, max_bytes: int
) -> Upload:
    """Open an upload; it waits an hour for its parts.

    Raises:
        FileTooLarge: more than `max_bytes` are announced.
        InvalidRequest: a purpose there is not, or a filename that cannot be shown.
        QuotaExceeded: the organization has no room for it.
    """
    files.check_purpose(asked.purpose)
    files.check_filename(asked.filename, param="filename")
    if asked.size_bytes > max_bytes:
        raise FileTooLarge(f"The file is larger than {max_bytes} bytes.", param="bytes")
    await quotas.check_stored(tx, organization_id, more_bytes=asked.size_bytes)
    upload = Upload(
        id=new_id("upload_"),
        organization_id=organization_id,
        filename=asked.filename,
        mime_type=asked.mime_type,
        purpose=asked.purpose,
        size_bytes=asked.size_bytes,
        file_lifetime_s=asked.file_lifetime_s,
        expires_at=from_now(seconds=LIFETIME_S),
    )
    tx.add(upload)
    await tx.flush()
    await tx.refresh(upload)
    return upload


async def add_part(
    db: Database, by: Actor, upload_id: str, stream: AsyncIterator[bytes]
) -> UploadPart:
    """Store a part with constant memory; nothing of it stays when it is refused.

    Raises:
        FileTooLarge: the part, or all of them together.
        InvalidUploadState: the upload is over.
        NotFound: no such upload, or another tenant's.
        QuotaExceeded: the organization has no room for it.
    """
    async with db.transaction() as tx:
        _require_pending(await get(tx, by.organization_id, upload_id))
        await quotas.check_stored(tx, by.organization_id, more_bytes=0)
    stored = await blobs.write(db, by.organization_id, _limited(stream))
    try:
        async with db.transaction() as tx:
            await quotas.check_stored(tx, by.organization_id, more_bytes=stored.size)
            upload = await get(tx, by.organization_id, upload_id, hold=True)
            _require_pending(upload)
            await _check_room(tx, upload, stored.size)
            await blobs.seal(tx, stored)
            part = UploadPart(
                id=new_id("part_"),
                upload_id=upload_id,
                blob_id=stored.blob_id,
                size_bytes=stored.size,
            )
            tx.add(part)
            await tx.flush()
            await tx.refresh(part)
            told = {"part": part.id, "bytes": part.size_bytes}
            audit.record(tx, by, "upload.part_added", upload_id, told)
            return part
    except BaseException:
        async with db.transaction() as tx:
            await blobs.give_up(tx, stored.blob_id)
        raise


async def complete(
    db: Database, by: Actor, upload_id: str, part_ids: Sequence[str], md5: str | None
) -> tuple[Upload, File | None]:
    """Make one file of the parts, checked like one that came whole. Completing twice is no error.

    A file that is refused leaves the upload as it was. The file is None once it was deleted.

    Raises:
        InvalidFile: another md5, or no training data where it should be.
        InvalidRequest: parts that are not the upload's, or not as many bytes as it said.
        InvalidUploadState: it was cancelled, or has expired.
        NotFound: no such upload, or another tenant's.
    """
    async with db.transaction() as tx:
        upload = await get(tx, by.organization_id, upload_id)
        if upload.status == "completed":
            return upload, await _file_of(tx, upload)
        _require_pending(upload)
        parts = await _ordered(tx, upload, part_ids)
    digest = hashlib.md5(usedforsecurity=False)

    async def close(tx: AsyncSession, file: File) -> None:
        if not await _end(tx, upload_id, "completed", file_id=file.id):
            raise InvalidUploadState(f"{upload_id} was cancelled meanwhile.")
        audit.record(tx, by, "upload.completed", upload_id, {"file": file.id})

    try:
        await files.upload(
            db,
            by,
            _joined(db, parts, digest),
            lambda: _label(upload, md5, digest.hexdigest()),
            max_bytes=upload.size_bytes,
            stored_already=True,
            adopt=close,
        )
    except (InvalidUploadState, BlobGone):
        # The same request, sent again while the first was at work: its file is the answer.
        async with db.transaction() as tx:
            upload = await get(tx, by.organization_id, upload_id)
        if upload.status != "completed":
            raise
    async with db.transaction() as tx:
        upload = await get(tx, by.organization_id, upload_id)
        return upload, await _file_of(tx, upload)


async def cancel(tx: AsyncSession, organization_id: str, upload_id: str) -> Upload:
    """Drop an upload and its parts. Cancelling twice is no error.

    Raises:
        InvalidUploadState: it was completed, or has expired.
        NotFound: no such upload, or another tenant's.
    """
    upload = await get(tx, organization_id, upload_id, hold=True)
    if upload.status != "cancelled":
        _require_pending(upload)
        await _end(tx, upload_id, "cancelled")
        await tx.refresh(upload)
    return upload


async def get(
    tx: AsyncSession, organization_id: str, upload_id: str, *, hold: bool = False
) -> Upload:
    """Return an upload of the caller's; with `hold`, nobody else ends it or adds to it meanwhile.

    Raises:
        NotFound: no such upload, or another tenant's.
    """
    query = select(Upload).where(Upload.id == upload_id, Upload.organization_id == organization_id)
    upload = (await tx.scalars(query.with_for_update() if hold else query)).one_or_none()
    if upload is None:
        raise NotFound(f"No such upload: {upload_id}.", param="upload_id")
    return upload


def status_of(upload: Upload) -> Status:
    """Return an upload's status; one past its time has expired, whether or not it was swept."""
    late = upload.status == "pending" and upload.expires_at <= datetime.now(UTC)
    return "expired" if late else cast(Status, upload.status)


async def expire(tx: AsyncSession, *, limit: int) -> int:
    """End some uploads whose hour is long over and drop their parts; say how many."""
    late = Upload.expires_at < from_now(seconds=-GRACE_S)
    some = select(Upload.id).where(Upload.status == "pending", late).limit(limit)
    held = list(await tx.scalars(some.with_for_update(skip_locked=True)))
    for upload_id in held:
        await _end(tx, upload_id, "expired")
    return len(held)


def _require_pending(upload: Upload) -> None:
    status = status_of(upload)
    if status != "pending":
        raise InvalidUploadState(f"{upload.id} is {status}; make a new upload.")


async def _limited(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    size = 0
    async for data in stream:
        size += len(data)
        if size > PART_BYTES:
            raise FileTooLarge(f"A part has at most {PART_BYTES} bytes.", param="data")
        yield data


async def _check_room(tx: AsyncSession, upload: Upload, size: int) -> None:
    """Let parts be sent again whose answer was lost, but not without end."""
    total = func.coalesce(func.sum(UploadPart.size_bytes), 0)
    query = select(total, func.count()).where(UploadPart.upload_id == upload.id)
    stored, count = (await tx.execute(query)).one()
    most = 2 * upload.size_bytes + PART_BYTES
    if stored + size > most or count >= MAX_PARTS:
        raise FileTooLarge(
            f"{upload.id} was announced with {upload.size_bytes} bytes;"
            f" {stored + size} in {count + 1} parts are too many.",
            param="data",
        )


async def _ordered(tx: AsyncSession, upload: Upload, part_ids: Sequence[str]) -> list[UploadPart]:
    """Return the parts in the caller's order, which are all the bytes that were announced."""
    query = select(UploadPart).where(UploadPart.upload_id == upload.id)
    known = {part.id: part for part in await tx.scalars(query)}
    strange = [part_id for part_id in part_ids if part_id not in known]
    if strange or len(set(part_ids)) != len(part_ids):
        what = f"{strange[0]!r} is not one of them" if strange else "one of them stands twice"
        raise InvalidRequest(
            f"part_ids are the parts of {upload.id}, each once: {what}.", param="part_ids"
        )
    parts = [known[part_id] for part_id in part_ids]
    size = sum(part.size_bytes for part in parts)
    if size != upload.size_bytes:
        raise InvalidRequest(
            f"{upload.id} was announced with {upload.size_bytes} bytes; these parts have {size}.",
            param="part_ids",
        )
    return parts


async def _joined(
    db: Database, parts: Sequence[UploadPart], digest: "hashlib._Hash"
) -> AsyncIterator[bytes]:
    for part in parts:
        async for data in blobs.read(db, part.blob_id):
            digest.update(data)
            yield data


def _label(upload: Upload, md5: str | None, found: str) -> Label:
    if md5 is not None and md5.lower() != found:
        raise InvalidFile(f"The parts in this order have the md5 {found}, not {md5}.", param="md5")
    return Label(upload.filename, upload.purpose, upload.file_lifetime_s)


async def _file_of(tx: AsyncSession, upload: Upload) -> File | None:
    query = select(File).where(
        File.id == upload.file_id, File.organization_id == upload.organization_id
    )
    return (await tx.scalars(query)).one_or_none()


async def _end(
    tx: AsyncSession, upload_id: str, status: Status, *, file_id: str | None = None
) -> bool:
    """End a pending upload and let go of its parts; say whether it was pending."""
    ended = await tx.execute(
        update(Upload)
        .where(Upload.id == upload_id, Upload.status == "pending")
        .values(status=status, file_id=file_id)
        .returning(Upload.id)
    )
    if ended.first() is None:
        return False
    gone = delete(UploadPart).where(UploadPart.upload_id == upload_id)
    await blobs.discard(tx, *(await tx.scalars(gone.returning(UploadPart.blob_id))))
    return True
