"""Bytes in PostgreSQL."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError

from app import blobs
from app.blobs import CHUNK_BYTES, CHUNKS_PER_COMMIT, BlobGone, CorruptBlob, StoredBytes
from app.db import Database, in_binary
from app.tables import Blob, BlobChunk
from tests.app.records import make_file, make_organization, ready_blob, run, stream

CONTENT = random.Random(0).randbytes(2 * CHUNK_BYTES + 12_345)


LONG_AGO = "now() - interval '61 minutes'"


@pytest.fixture
async def owner(db: Database) -> str:
    return await make_organization(db)


async def sealed(db: Database, owner: str, data: bytes = CONTENT) -> StoredBytes:
    return await ready_blob(db, owner, data)


async def age(db: Database, blob_id: str) -> None:
    await run(db, f"UPDATE blobs SET written_at = {LONG_AGO} WHERE id = :id", id=blob_id)


async def count(db: Database, owner: str) -> tuple[int, int]:
    """How many blobs and chunks an organization has, in any state."""
    blobs_of = select(Blob.id).where(Blob.organization_id == owner)
    chunks = select(func.count()).select_from(BlobChunk).where(BlobChunk.blob_id.in_(blobs_of))
    async with db.transaction() as tx:
        rows = await tx.scalar(select(func.count()).select_from(blobs_of.subquery()))
        return rows or 0, await tx.scalar(chunks) or 0


async def first_batch(db: Database, owner: str) -> None:
    """Wait until it is stored: it is while the next one is gathered."""
    while await count(db, owner) != (1, CHUNKS_PER_COMMIT):
        await asyncio.sleep(0.01)


async def read(db: Database, blob_id: str, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join([data async for data in blobs.read(db, blob_id, start=start, stop=stop)])


async def test_what_goes_in_comes_out(db: Database, owner: str):
    stored = await blobs.write(db, owner, stream(CONTENT, 77_777))

    assert stored.size == len(CONTENT)
    assert stored.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert await read(db, stored.blob_id) == CONTENT


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 1), (CHUNK_BYTES - 1, CHUNK_BYTES + 1), (5, len(CONTENT)), (len(CONTENT) - 1, None)],
)
async def test_a_range_is_exact(db: Database, owner: str, start: int, stop: int | None):
    stored = await blobs.write(db, owner, stream(CONTENT, 1 << 19))

    assert await read(db, stored.blob_id, start, stop) == CONTENT[start:stop]


async def test_a_stream_that_breaks_leaves_nothing_behind_a_purge(db: Database, owner: str):
    async def breaks() -> AsyncIterator[bytes]:
        yield CONTENT + bytes(CHUNKS_PER_COMMIT * CHUNK_BYTES)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await blobs.write(db, owner, breaks())
    await blobs.purge(db)

    assert await count(db, owner) == (0, 0)


async def test_a_discarded_blob_is_gone_at_once_and_its_bytes_with_the_purge(
    db: Database, owner: str
):
    stored = await sealed(db, owner)

    async with db.transaction() as tx:
        await blobs.discard(tx, stored.blob_id)

    with pytest.raises(BlobGone):
        await read(db, stored.blob_id)
    with pytest.raises(BlobGone):
        async with db.transaction() as tx:
            await blobs.describe(tx, stored.blob_id)
    assert await blobs.purge(db) >= 1
    assert await count(db, owner) == (0, 0)


async def test_discarding_costs_no_more_for_many_chunks(db: Database, owner: str):
    stored = await sealed(db, owner)
    async with db.transaction() as tx:
        await blobs.discard(tx, stored.blob_id)

    assert await count(db, owner) == (1, 3)


async def test_a_purge_goes_on_until_all_is_gone(
    db: Database, owner: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blobs, "CHUNKS_PER_PURGE", 2)
    monkeypatch.setattr(blobs, "BLOBS_PER_PURGE", 2)
    for _ in range(5):
        stored = await sealed(db, owner)
        async with db.transaction() as tx:
            await blobs.discard(tx, stored.blob_id)

    await blobs.purge(db)

    assert await count(db, owner) == (0, 0)


async def test_purges_at_once_share_the_work_and_each_blob_is_counted_once(own: Database):
    organization = await make_organization(own)
    for _ in range(12):
        stored = await sealed(own, organization)
        async with own.transaction() as tx:
            await blobs.discard(tx, stored.blob_id)

    gone = await asyncio.gather(*(blobs.purge(own) for _ in range(4)))

    assert sum(gone) == 12
    assert await count(own, organization) == (0, 0)


async def test_a_blob_with_an_owner_is_never_purged(db: Database, owner: str):
    file = await make_file(db, owner)
    async with db.transaction() as tx:
        await blobs.discard(tx, file.blob_id)

    await blobs.purge(db)

    assert await count(db, owner) == (1, 1)


async def test_an_abandoned_blob_is_purged_and_its_writer_cannot_seal_it(db: Database, owner: str):
    stored = await blobs.write(db, owner, stream(CONTENT))
    await age(db, stored.blob_id)

    await blobs.purge(db)

    assert await count(db, owner) == (0, 0)
    with pytest.raises(BlobGone):
        async with db.transaction() as tx:
            await blobs.seal(tx, stored)


async def test_a_blob_is_sealed_once(db: Database, owner: str):
    stored = await sealed(db, owner)

    with pytest.raises(BlobGone):
        async with db.transaction() as tx:
            await blobs.seal(tx, stored)


async def test_a_writer_that_wakes_up_too_late_can_write_no_more(db: Database, owner: str):
    async def sleepy() -> AsyncIterator[bytes]:
        yield bytes(CHUNKS_PER_COMMIT * CHUNK_BYTES)
        await first_batch(db, owner)
        await run(db, f"UPDATE blobs SET written_at = {LONG_AGO} WHERE organization_id = '{owner}'")
        await blobs.purge(db)
        yield CONTENT

    with pytest.raises(BlobGone):
        await blobs.write(db, owner, sleepy())

    assert await count(db, owner) == (0, 0)


async def test_a_slow_writer_is_not_taken_for_abandoned_while_it_writes(db: Database, owner: str):
    async def slow() -> AsyncIterator[bytes]:
        await run(db, f"UPDATE blobs SET written_at = {LONG_AGO} WHERE organization_id = '{owner}'")
        yield bytes(CHUNKS_PER_COMMIT * CHUNK_BYTES)
        await first_batch(db, owner)
        await blobs.purge(db)
        yield CONTENT

    stored = await blobs.write(db, owner, slow())

    assert len(await read(db, stored.blob_id)) == stored.size


async def test_what_is_being_written_is_read_back_but_not_described(db: Database, owner: str):
    stored = await blobs.write(db, owner, stream(CONTENT))

    await blobs.verify(db, stored)
    with pytest.raises(BlobGone):
        async with db.transaction() as tx:
            await blobs.describe(tx, stored.blob_id)


@pytest.mark.parametrize("seq", [0, 1, 2])
async def test_a_missing_chunk_is_no_short_stream(db: Database, owner: str, seq: int):
    stored = await sealed(db, owner)
    await run(
        db,
        "DELETE FROM blob_chunks WHERE blob_id = :id AND seq = :seq",
        id=stored.blob_id,
        seq=seq,
    )

    with pytest.raises(CorruptBlob, match=rf"{stored.blob_id}: chunk {seq}"):
        await read(db, stored.blob_id)


@pytest.mark.parametrize("chunk", [b"", b"\0" * 5, b"\0" * (CHUNK_BYTES + 1)])
async def test_a_chunk_of_another_length_is_no_short_stream(db: Database, owner: str, chunk: bytes):
    stored = await sealed(db, owner)
    statement = "UPDATE blob_chunks SET data = :data WHERE blob_id = :id AND seq = 1"
    await run(db, statement, id=stored.blob_id, data=chunk)

    with pytest.raises(CorruptBlob, match=stored.blob_id):
        await read(db, stored.blob_id, 0, stored.size)


async def test_bytes_behind_the_end_are_noticed(db: Database, owner: str):
    stored = await sealed(db, owner, CONTENT[: 2 * CHUNK_BYTES])
    await run(db, "INSERT INTO blob_chunks VALUES (:id, 2, 'x')", id=stored.blob_id)

    with pytest.raises(CorruptBlob, match=stored.blob_id):
        await read(db, stored.blob_id)


async def test_a_blob_deleted_under_a_slow_reader_ends_the_stream_with_an_error(
    db: Database, owner: str
):
    stored = await sealed(db, owner)
    reading = blobs.read(db, stored.blob_id)
    await anext(reading)

    async with db.transaction() as tx:
        await blobs.discard(tx, stored.blob_id)

    with pytest.raises(BlobGone):
        [data async for data in reading]


async def test_a_reader_who_leaves_lets_the_connection_go(own: Database, owner: str):
    stored = await sealed(own, await make_organization(own))
    readers = [blobs.read(own, stored.blob_id) for _ in range(30)]  # more than there are
    for reading in readers:
        assert await anext(reading)

    for reading in readers:
        await reading.aclose()

    assert await read(own, stored.blob_id) == CONTENT


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, len(CONTENT)])
async def test_a_fetched_file_has_the_bytes(db: Database, owner: str, tmp_path: Path, size: int):
    stored = await sealed(db, owner, CONTENT[:size])

    fetched = await blobs.fetch(db, stored.blob_id, tmp_path / "train.jsonl")

    assert fetched == stored
    assert (tmp_path / "train.jsonl").read_bytes() == CONTENT[:size]
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


async def test_a_flipped_byte_is_never_fetched(db: Database, owner: str, tmp_path: Path):
    stored = await sealed(db, owner)
    await run(
        db,
        "UPDATE blob_chunks SET data = set_byte(data, 7, 255 - get_byte(data, 7))"
        " WHERE blob_id = :id AND seq = 1",
        id=stored.blob_id,
    )

    with pytest.raises(CorruptBlob, match=stored.blob_id):
        await blobs.fetch(db, stored.blob_id, tmp_path / "train.jsonl")

    assert not list(tmp_path.iterdir())


async def test_what_is_not_ready_is_not_fetched(db: Database, owner: str, tmp_path: Path):
    stored = await blobs.write(db, owner, stream(CONTENT))

    with pytest.raises(BlobGone, match=stored.blob_id):
        await blobs.fetch(db, stored.blob_id, tmp_path / "train.jsonl")


async def test_a_server_that_goes_away_is_told_of_as_anywhere_else(own: Database):
    stored = await sealed(own, await make_organization(own))

    with pytest.raises(OperationalError):
        async with own.transaction() as tx, in_binary(tx):
            await tx.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    assert await read(own, stored.blob_id) == CONTENT


async def test_chunks_are_stored_uncompressed_out_of_line(db: Database):
    query = text(
        "SELECT attstorage FROM pg_attribute"
        " WHERE attrelid = 'blob_chunks'::regclass AND attname = 'data'"
    )
    async with db.transaction() as tx:
        assert await tx.scalar(query) in ("e", b"e")
