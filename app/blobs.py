"""Bytes in PostgreSQL: stream in, stream a range out, sha256 beside them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database
from app.ids import new_id
from app.tables import Blob, BlobChunk

CHUNK_BYTES = 1 << 20
CHUNKS_PER_COMMIT = 4  # what one writer holds in memory, in MiB


@dataclass(frozen=True)
class StoredBytes:
    """A blob's name, length in bytes and hex sha256."""

    blob_id: str
    size: int
    sha256: str


async def write(db: Database, organization_id: str, stream: AsyncIterator[bytes]) -> StoredBytes:
    """Store a stream with constant memory, in transactions of 4 MiB. `seal` makes it visible.

    When the stream raises, what was stored is removed and the error goes on.
    """
    blob_id = new_id("blob-")
    async with db.transaction() as tx:
        tx.add(Blob(id=blob_id, organization_id=organization_id, state="writing"))
    digest, size, seq = hashlib.sha256(), 0, 0
    try:
        async for batch in _batches(_chunks(stream)):
            rows = []
            for data in batch:
                digest.update(data)
                size += len(data)
                rows.append({"blob_id": blob_id, "seq": seq, "data": data})
                seq += 1
            async with db.transaction() as tx:
                await tx.execute(insert(BlobChunk), rows)
    except BaseException:
        async with db.transaction() as tx:
            await remove(tx, blob_id)
        raise
    return StoredBytes(blob_id, size, digest.hexdigest())


async def seal(tx: AsyncSession, stored: StoredBytes) -> None:
    """Make written bytes readable, in the transaction that gives them an owner."""
    await tx.execute(
        update(Blob)
        .where(Blob.id == stored.blob_id, Blob.state == "writing")
        .values(state="ready", size=stored.size, sha256=stored.sha256)
    )


async def remove(tx: AsyncSession, blob_id: str) -> None:
    """Delete a blob and its chunks."""
    await tx.execute(delete(Blob).where(Blob.id == blob_id))


async def is_ready(tx: AsyncSession, blob_id: str) -> bool:
    """Return whether a blob was sealed."""
    found = await tx.execute(select(Blob.state).where(Blob.id == blob_id))
    return found.scalar_one_or_none() == "ready"


async def discard(tx: AsyncSession, *blob_ids: str) -> None:
    """Give up blobs in this transaction; their chunks are deleted by the sweep."""
    await tx.execute(update(Blob).where(Blob.id.in_(blob_ids)).values(state="deleting"))


async def describe(tx: AsyncSession, blob_id: str) -> StoredBytes:
    """Return the size and hash of a ready blob."""
    blob = (
        await tx.execute(select(Blob).where(Blob.id == blob_id, Blob.state == "ready"))
    ).scalar_one()
    assert blob.size is not None and blob.sha256 is not None
    return StoredBytes(blob.id, blob.size, blob.sha256)


async def read(
    db: Database, blob_id: str, *, start: int = 0, stop: int | None = None
) -> AsyncIterator[bytes]:
    """Yield bytes [start, stop) chunk by chunk; no transaction is held while the reader is slow."""
    position = start
    while stop is None or position < stop:
        data = await _chunk(db, blob_id, position // CHUNK_BYTES)
        if data is None:
            return
        offset = position % CHUNK_BYTES
        end = len(data) if stop is None else min(len(data), offset + stop - position)
        if end <= offset:
            return
        yield data[offset:end]
        position += end - offset


async def fetch(db: Database, blob_id: str, target: Path) -> StoredBytes:
    """Write a ready blob to a file, and check that it is what was stored."""
    async with db.transaction() as tx:
        stored = await describe(tx, blob_id)
    digest = hashlib.sha256()
    with target.open("wb") as file:
        async for data in read(db, blob_id):
            digest.update(data)
            await asyncio.to_thread(file.write, data)
    if digest.hexdigest() != stored.sha256:
        raise OSError(f"the database returned other bytes than were stored: {blob_id}")
    return stored


async def _chunk(db: Database, blob_id: str, seq: int) -> bytes | None:
    async with db.transaction() as tx:
        query = select(BlobChunk.data).where(BlobChunk.blob_id == blob_id, BlobChunk.seq == seq)
        return (await tx.execute(query)).scalar_one_or_none()


async def _chunks(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut a stream into pieces of exactly CHUNK_BYTES, the last one shorter."""
    buffer = bytearray()
    async for data in stream:
        buffer += data
        while len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer[:CHUNK_BYTES])
            del buffer[:CHUNK_BYTES]
    if buffer:
        yield bytes(buffer)


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
