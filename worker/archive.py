"""Packs an adapter folder into a tar whose bytes depend on its contents alone."""

import asyncio
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

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


async def read(path: Path) -> AsyncIterator[bytes]:
    """Yield a file in pieces, off the event loop."""
    with path.open("rb") as file:
        while data := await asyncio.to_thread(file.read, READ_BYTES):
            yield data
