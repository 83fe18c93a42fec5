"""Finds the files in a tar that is kept as a blob, by its headers alone; unpacks one on disk."""

import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

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


def unpack(source: Path, folder: Path) -> None:
    """Write the files of an archive below `folder`.

    By hand, because Python before 3.11.4 has no extraction filter.

    Raises:
        ValueError: an entry is no plain file, or would land outside.
    """
    with tarfile.open(source) as tar:
        for entry in tar:
            name = PurePosixPath(entry.name)
            data = tar.extractfile(entry) if entry.isreg() else None
            if data is None or name.is_absolute() or ".." in name.parts or not name.parts:
                raise ValueError(f"{source.name} holds {entry.name!r}, which is no plain file")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(data, file)


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
