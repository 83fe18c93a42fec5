"""Unpacked adapters and models on this machine, the last few that were tried."""

import asyncio
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from app import blobs
from app.db import Database
from app.tars import unpack

MOST_KEPT = 4


class Shelf:
    """Folders of unpacked archives, named by their blobs; the least recently used one goes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: list[str] = []

    async def get(self, db: Database, blob_id: str) -> Path:
        """Return the folder of an archive, fetched and proven unless it is there.

        Raises:
            BlobGone: it was deleted.
            OSError: the disk is full.
        """
        target = self._folder / blob_id
        if blob_id in self._kept:
            self._kept.remove(blob_id)
        else:
            await self._make_room()
            await _unpack(db, blob_id, target)
        self._kept.append(blob_id)
        return target

    async def _make_room(self) -> None:
        while len(self._kept) >= MOST_KEPT:
            await asyncio.to_thread(shutil.rmtree, self._folder / self._kept.pop(0))


async def _unpack(db: Database, blob_id: str, target: Path) -> None:
    """Let the folder of an archive appear, complete."""
    archived, temporary = target.with_suffix(".tar"), target.with_suffix(".tmp")
    try:
        await blobs.fetch(db, blob_id, archived)
        await asyncio.to_thread(unpack, archived, temporary)
        temporary.rename(target)
    finally:
        archived.unlink(missing_ok=True)
        await asyncio.to_thread(shutil.rmtree, temporary, ignore_errors=True)


@contextmanager
def own_folder(parent: Path, name: str) -> Iterator[Path]:
    """Make a folder of our own for the length of the block, and remove those of the dead.

    Workers may share a data folder: a lock on each folder, which the kernel lets go with its
    holder, tells the living from the dead. One worker at a time looks.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / name
    with ExitStack() as ours:
        with _locked(parent, wait=True):
            for left in parent.iterdir():
                with _locked(left) as dead:
                    if dead:
                        shutil.rmtree(left)
            folder.mkdir(mode=0o700)
            ours.enter_context(_locked(folder))
        yield folder
        shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a folder, if nobody else does or we wait; say whether we got it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        got = True
    except BlockingIOError:
        got = False
    try:
        yield got
    finally:
        os.close(descriptor)
