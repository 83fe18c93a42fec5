"""Finds the files in a tar that is kept as a blob, by its headers alone."""

import tarfile
from dataclasses import dataclass

from app import blobs
from app.blobs import CorruptBlob, StoredBytes
from app.db import Database

BLOCK = tarfile.BLOCKSIZE
MAX_PAX_BYTES = 64 << 10


@dataclass(frozen=True)
class Entry:
    """A file in an archive: its name there, and where its bytes are."""

    name: str
    start: int
    size: int


async def entries(db: Database, stored: StoredBytes) -> list[Entry]:
    """Return the plain files of an archive, in its order.

    Raises:
        BlobGone: it is not there.
        CorruptBlob: it is no tar.
    """
    found: list[Entry] = []
    extended: dict[str, str] = {}
    position = 0
    while position < stored.size:
        header = await _read(db, stored, position, BLOCK)
        if header.count(0) == len(header):
            break
        info = _parse(stored, header)
        position += BLOCK
        size = int(extended.get("size", info.size))
        if info.type == tarfile.XHDTYPE:
            if size > MAX_PAX_BYTES:
                raise CorruptBlob(f"{stored.blob_id}: an extended header of {size} bytes.")
            extended = _pax(await _read(db, stored, position, size))
        else:
            if info.isreg():
                found.append(Entry(extended.get("path", info.name), position, size))
            extended = {}
        position += size + -size % BLOCK
    return found


async def _read(db: Database, stored: StoredBytes, start: int, size: int) -> bytes:
    return b"".join(
        [data async for data in blobs.read(db, stored.blob_id, start=start, stop=start + size)]
    )


def _parse(stored: StoredBytes, header: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "replace")
    except tarfile.HeaderError as error:
        raise CorruptBlob(f"{stored.blob_id} is no tar: {error}.") from error


def _pax(records: bytes) -> dict[str, str]:
    """Read what a header of 512 bytes cannot say: lines `length key=value`."""
    found = {}
    while records:
        length = int(records.partition(b" ")[0])
        key, _, value = records[:length].partition(b" ")[2][:-1].partition(b"=")
        found[key.decode()] = value.decode()
        records = records[length:]
    return found
