"""Packs a folder into a tar whose bytes depend on its contents alone, and unpacks one."""

import asyncio
import shutil
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path, PurePosixPath

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
            if data is None or name.is_absolute() or ".." in name.parts:
                raise ValueError(f"{source.name} holds {entry.name!r}, which is no plain file")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(data, file)
