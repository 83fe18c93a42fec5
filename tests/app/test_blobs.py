"""Bytes in PostgreSQL."""

import hashlib
import random
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, select, text

from app import blobs
from app.blobs import CHUNK_BYTES
from app.db import Database
from app.ids import new_id
from app.tables import Blob, Organization

CONTENT = random.Random(0).randbytes(2 * CHUNK_BYTES + 12_345)


@pytest.fixture
async def owner(db: Database) -> str:
    organization = Organization(id=new_id("org-"), name=new_id("blobs-"))
    async with db.transaction() as tx:
        tx.add(organization)
    return organization.id


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read(db: Database, blob_id: str, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join([data async for data in blobs.read(db, blob_id, start=start, stop=stop)])


async def test_what_goes_in_comes_out(db: Database, owner: str):
    stored = await blobs.write(db, owner, pieces(CONTENT, 77_777))

    assert stored.size == len(CONTENT)
    assert stored.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert await read(db, stored.blob_id) == CONTENT


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 1), (CHUNK_BYTES - 1, CHUNK_BYTES + 1), (5, len(CONTENT)), (len(CONTENT) - 1, None)],
)
async def test_a_range_is_exact(db: Database, owner: str, start: int, stop: int | None):
    stored = await blobs.write(db, owner, pieces(CONTENT, 1 << 19))

    assert await read(db, stored.blob_id, start, stop) == CONTENT[start:stop]


async def test_a_stream_that_breaks_leaves_nothing(db: Database, owner: str):
    async def breaks() -> AsyncIterator[bytes]:
        yield CONTENT
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await blobs.write(db, owner, breaks())

    async with db.transaction() as tx:
        count = select(func.count()).select_from(Blob).where(Blob.organization_id == owner)
        assert await tx.scalar(count) == 0


async def test_chunks_are_stored_uncompressed_out_of_line(db: Database):
    query = text(
        "SELECT attstorage FROM pg_attribute"
        " WHERE attrelid = 'blob_chunks'::regclass AND attname = 'data'"
    )
    async with db.transaction() as tx:
        assert await tx.scalar(query) in ("e", b"e")
