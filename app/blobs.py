"""Bytes in PostgreSQL: stream in, stream a range out, sha256 beside them."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy import (
    ColumnElement,
    and_,
    delete,
    exists,
    func,
    insert,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, in_binary
from app.ids import new_id
from app.tables import Blob, BlobChunk, Checkpoint, File, Job, ResumeState, UploadPart

T = TypeVar("T")

CHUNK_BYTES = 1 << 20
CHUNKS_PER_COMMIT = 4  # in MiB; one writer holds twice as much in memory
CHUNKS_PER_PURGE = 64  # what one transaction deletes, in MiB: short locks, small bursts of WAL
BLOBS_PER_PURGE = 64
ABANDONED_AFTER = text("interval '1 hour'")  # since a writer's last batch; it then cannot seal

# Every column that owns a blob. What one of these names is never purged, whatever its state.
OWNERS = (
    File.blob_id,
    Job.adapter_blob_id,
    Checkpoint.blob_id,
    ResumeState.blob_id,
    UploadPart.blob_id,
)
# As it is sent: to build it anew for each MiB would cost half as much as the MiB.
ONE_CHUNK = """
    SELECT blobs.size, blob_chunks.data FROM blobs
    LEFT JOIN blob_chunks ON blob_chunks.blob_id = blobs.id AND blob_chunks.seq = %s
    WHERE blobs.id = %s AND blobs.state IN ('writing', 'ready')
"""
UNOWNED = and_(*(~exists().where(column == Blob.id) for column in OWNERS))


class BlobGone(Exception):
    """The bytes were given up: discarded, or abandoned by a writer that was silent for too long."""


class CorruptBlob(Exception):
    """The database holds other bytes than were stored."""


@dataclass(frozen=True)
class StoredBytes:
    """A blob's name, length in bytes and hex sha256."""

    blob_id: str
    size: int
    sha256: str


async def write(
    db: Database, organization_id: str, stream: AsyncIterator[bytes], *, writer: str | None = None
) -> StoredBytes:
    """Store a stream with constant memory, in transactions of 4 MiB. `seal` makes it visible.

    While one batch is stored the next one is gathered.
    When the stream raises, what was stored is given up and the error goes on. `writer` is the
    attempt at a job with which it ends, by `give_up_of`.

    Raises:
        BlobGone: the stream stood still for so long that the blob was taken for abandoned.
    """
    blob_id = new_id("blob-")
    async with db.transaction() as tx:
        tx.add(Blob(id=blob_id, organization_id=organization_id, state="writing", writer=writer))
    digest, size, seq = hashlib.sha256(), 0, 0
    try:
        async with aclosing(_ahead(_batches(_hashed(_chunks(stream), digest)))) as batches:
            async for batch in batches:
                rows = [
                    {"blob_id": blob_id, "seq": seq, "data": data}
                    for seq, data in enumerate(batch, seq)
                ]
                async with db.transaction() as tx:
                    await _still_writing(tx, blob_id, written_at=func.now())
                    await tx.execute(insert(BlobChunk), rows)
                seq += len(batch)
                size += sum(map(len, batch))
    except BaseException:
        # Where the database is away, the sweep finds it abandoned.
        with suppress(OperationalError, InterfaceError):
            async with db.transaction() as tx:
                await give_up(tx, blob_id)
        raise
    return StoredBytes(blob_id, size, digest.hexdigest())


async def seal(tx: AsyncSession, stored: StoredBytes) -> None:
    """Make written bytes readable, in the transaction that gives them an owner.

    Raises:
        BlobGone: they were given up meanwhile.
    """
    await _still_writing(tx, stored.blob_id, state="ready", size=stored.size, sha256=stored.sha256)


async def give_up(tx: AsyncSession, blob_id: str) -> None:
    """Let go of bytes that were not sealed; sealed ones have an owner, and stay."""
    await _give_up(tx, Blob.id == blob_id)


async def give_up_of(tx: AsyncSession, writer: str) -> None:
    """Let go of what an attempt at a job leaves half written."""
    await _give_up(tx, Blob.writer == writer)


async def discard(tx: AsyncSession, *blob_ids: str) -> None:
    """Let go of blobs whose owners end in this transaction; `purge` removes the bytes later."""
    await tx.execute(update(Blob).where(Blob.id.in_(blob_ids)).values(state="deleting"))


async def purge(db: Database) -> int:
    """Remove the bytes that were let go of or abandoned; return how many blobs are gone.

    Many may do it at once: each takes what no other holds. Its transactions are small.
    """
    async with db.transaction() as tx:
        await _give_up_abandoned(tx)
    gone, last = 0, ""
    while batch := await _deleting(db, after=last):
        last = batch[-1]
        more = True
        while more:
            async with db.transaction() as tx:
                removed, more = await _purge_some(tx, batch)
            gone += removed
    return gone


async def is_ready(tx: AsyncSession, blob_id: str) -> bool:
    """Return whether a blob was sealed."""
    found = await tx.execute(select(Blob.state).where(Blob.id == blob_id))
    return found.scalar_one_or_none() == "ready"


async def describe(tx: AsyncSession, blob_id: str) -> StoredBytes:
    """Return the size and hash of a ready blob.

    Raises:
        BlobGone: there is none.
    """
    query = select(Blob).where(Blob.id == blob_id, Blob.state == "ready")
    blob = (await tx.execute(query)).scalar_one_or_none()
    if blob is None:
        raise BlobGone(f"{blob_id} is not there, or not ready.")
    assert blob.size is not None and blob.sha256 is not None
    return StoredBytes(blob.id, blob.size, blob.sha256)


def read(
    db: Database, blob_id: str, *, start: int = 0, stop: int | None = None
) -> AsyncGenerator[bytes]:
    """Yield bytes [start, stop) chunk by chunk; no transaction is held while the reader is slow.

    While the reader has one chunk in hand the next one is fetched: that is the memory it takes.
    A blob that is being written can be read by its writer alone, who knows its name: up to where
    it ends so far. `describe`, which everybody else asks first, knows only ready ones.

    Raises:
        BlobGone: it is not there, or was given up, also while it was being read.
        CorruptBlob: a ready blob lacks bytes.
    """
    return _ahead(_pieces(db, blob_id, start, stop))


async def verify(db: Database, stored: StoredBytes) -> None:
    """Read bytes back and prove that they are those that were stored.

    Raises:
        BlobGone, CorruptBlob: they are not.
    """
    async for _ in _verified(db, stored):
        pass


async def fetch(db: Database, blob_id: str, target: Path) -> StoredBytes:
    """Copy a ready blob into a file, which is there only once size and hash are right.

    Raises:
        BlobGone: there is no such blob.
        CorruptBlob: the database holds other bytes than were stored.
    """
    async with db.transaction() as tx:
        stored = await describe(tx, blob_id)
    fresh = target.with_name(target.name + ".tmp")
    try:
        with fresh.open("wb") as file:
            async for data in _verified(db, stored):
                await asyncio.to_thread(file.write, data)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)
    return stored


async def _still_writing(tx: AsyncSession, blob_id: str, **values: object) -> None:
    """Change a blob of ours; the row's lock decides against who would take it for abandoned."""
    changed = await tx.execute(
        update(Blob)
        .where(Blob.id == blob_id, Blob.state == "writing")
        .values(**values)
        .returning(Blob.id)
    )
    if changed.first() is None:
        raise BlobGone(f"{blob_id} was given up before it was sealed.")


async def _give_up(tx: AsyncSession, which: ColumnElement[bool]) -> None:
    await tx.execute(update(Blob).where(which, Blob.state == "writing").values(state="deleting"))


async def _give_up_abandoned(tx: AsyncSession) -> None:
    silent = (
        select(Blob.id)
        .where(Blob.state == "writing", Blob.written_at < func.now() - ABANDONED_AFTER, UNOWNED)
        .with_for_update(of=Blob, skip_locked=True)
    )
    await _give_up(tx, Blob.id.in_(silent))


async def _deleting(db: Database, *, after: str) -> list[str]:
    """Return the next blobs to remove, by id."""
    query = (
        select(Blob.id)
        .where(Blob.state == "deleting", Blob.id > after, UNOWNED)
        .order_by(Blob.id)
        .limit(BLOBS_PER_PURGE)
    )
    async with db.transaction() as tx:
        return list(await tx.scalars(query))


async def _purge_some(tx: AsyncSession, blob_ids: list[str]) -> tuple[int, bool]:
    """Delete some chunks of these blobs, and the rows left bare; say how many, and if any is left.

    Blobs that another purge holds are its own.
    """
    mine = (
        select(Blob.id)
        .where(Blob.id.in_(blob_ids), Blob.state == "deleting")
        .with_for_update(skip_locked=True)
    )
    held = list(await tx.scalars(mine))
    key = tuple_(BlobChunk.blob_id, BlobChunk.seq)
    some = (
        select(BlobChunk.blob_id, BlobChunk.seq)
        .where(BlobChunk.blob_id.in_(held))
        .limit(CHUNKS_PER_PURGE)
    )
    await tx.execute(delete(BlobChunk).where(key.in_(some)))
    left = exists().where(BlobChunk.blob_id == Blob.id)
    bare = delete(Blob).where(Blob.id.in_(held), ~left).returning(Blob.id)
    removed = len(list(await tx.scalars(bare)))
    return removed, removed < len(held)


async def _verified(db: Database, stored: StoredBytes) -> AsyncIterator[bytes]:
    digest, size = hashlib.sha256(), 0
    async for data in read(db, stored.blob_id):
        await asyncio.to_thread(digest.update, data)
        size += len(data)
        yield data
    if (size, digest.hexdigest()) != (stored.size, stored.sha256):
        raise CorruptBlob(
            f"{stored.blob_id}: {size} bytes with sha256 {digest.hexdigest()}, not {stored.size}"
            f" with {stored.sha256} as stored."
        )


async def _pieces(db: Database, blob_id: str, start: int, stop: int | None) -> AsyncIterator[bytes]:
    """Yield what `read` does."""
    position = start
    while stop is None or position < stop:
        seq, offset = divmod(position, CHUNK_BYTES)
        size, data = await _chunk(db, blob_id, seq)
        end = position - offset + len(data)
        if size is not None:
            expected = min(size - seq * CHUNK_BYTES, CHUNK_BYTES)
            if len(data) != max(expected, 0):
                raise CorruptBlob(
                    f"{blob_id}: chunk {seq} has {len(data)} bytes, not {expected} as stored."
                )
        end = end if stop is None else min(end, stop)
        if end <= position:
            return
        yield data[offset : offset + end - position]
        position = end


async def _ahead(items: AsyncIterator[T]) -> AsyncGenerator[T]:
    """Yield the items, the next one being made while one is in hand."""
    coming = asyncio.create_task(_next(items))
    try:
        while (item := await coming) is not None:
            coming = asyncio.create_task(_next(items))
            yield item
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


async def _next(items: AsyncIterator[T]) -> T | None:
    return await anext(items, None)


async def _chunk(db: Database, blob_id: str, seq: int) -> tuple[int | None, bytes]:
    """Return a blob's size, once it is ready, and one chunk; empty where there is none."""
    async with db.looking() as tx, in_binary(tx):
        found = (await tx.exec_driver_sql(ONE_CHUNK, (seq, blob_id))).first()
    if found is None:
        raise BlobGone(f"{blob_id} is not there any more.")
    return found.size, found.data or b""


async def _chunks(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut a stream into pieces of exactly CHUNK_BYTES, the last one shorter."""
    buffer, held = bytearray(CHUNK_BYTES), 0
    async for data in stream:
        rest = memoryview(data)
        while rest:
            taken = rest[: CHUNK_BYTES - held]
            buffer[held : held + len(taken)] = taken
            held += len(taken)
            rest = rest[len(taken) :]
            if held == CHUNK_BYTES:
                yield bytes(buffer)
                held = 0
    if held:
        yield bytes(buffer[:held])


async def _hashed(chunks: AsyncIterator[bytes], digest: "hashlib._Hash") -> AsyncIterator[bytes]:
    """Pass chunks on, each hashed off the event loop."""
    async for chunk in chunks:
        await asyncio.to_thread(digest.update, chunk)
        yield chunk


async def _batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Group chunks into what one transaction stores."""
    batch: list[bytes] = []
    async for chunk in chunks:
        batch.append(chunk)
        if len(batch) == CHUNKS_PER_COMMIT:
            yield batch
            batch = []
    if batch:
        yield batch
