"""Packs a folder into a tar whose bytes depend on its contents alone, and unpacks one."""

import asyncio
import shutil
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

READ_BYTES = 1 << 20


def pack(folder: Path, target: Path) -> None:
    """Write the files of `folder`, sorted, without times, owners or compression."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                info = tarfile.TarInfo(path.relative_to(folder).as_posix())
                info.size = path.stat().st_size
                info.mode = 0o644
                with path.open("rb") as file:
                    tar.addfile(info, file)


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


async def read(path: Path) -> AsyncIterator[bytes]:
    """Yield a file in pieces, off the event loop."""
    with path.open("rb") as file:
        while data := await asyncio.to_thread(file.read, READ_BYTES):
            yield data
