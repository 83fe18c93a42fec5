"""Packs a folder into a tar whose bytes depend on its contents alone."""

import asyncio
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

READ_BYTES = 1 << 20


def pack(folder: Path) -> Iterator[bytes]:
    """Yield a tar of the files of `folder`, sorted, without times, owners or compression."""
    size = 0
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            for data in _entry(path, path.relative_to(folder).as_posix()):
                size += len(data)
                yield data
    end = 2 * tarfile.BLOCKSIZE
    yield bytes(end + -(size + end) % tarfile.RECORDSIZE)


async def stream(folder: Path) -> AsyncIterator[bytes]:
    """Yield the same, off the event loop."""
    pieces = pack(folder)
    while (data := await asyncio.to_thread(next, pieces, None)) is not None:
        yield data


def _entry(path: Path, name: str) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size = path.stat().st_size
    info.mode = 0o644
    yield info.tobuf(tarfile.PAX_FORMAT)
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            yield data
    yield bytes(-info.size % tarfile.BLOCKSIZE)
