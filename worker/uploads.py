"""Moves what a run leaves into the database: exports and checkpoints on the way, the adapter."""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app import blobs
from app.blobs import StoredBytes
from app.jobs import lease
from app.jobs.spec import CheckpointSaved, Warned
from worker import archive
from worker.run import Run, patiently
from worker.rundir import link_checkpoint, remove_whole, step_of

log = structlog.get_logger()

LOOK_S = 1.0
T = TypeVar("T")


async def upload(run: Run, *, max_bytes: int) -> None:
    """Store exports and checkpoints while the run goes on."""
    while True:
        await asyncio.sleep(LOOK_S)
        await store_exports(run)
        await store_checkpoint(run, max_bytes=max_bytes)


async def end_upload(run: Run) -> None:
    """Stop what is stored on the way: what matters of it is stored again, to its end."""
    assert run.uploading is not None
    run.uploading.cancel()
    await asyncio.wait([run.uploading])


async def store_exports(run: Run) -> None:
    """Show the adapters from the middle of the run to their owner."""
    while run.exports:
        event = run.exports[0]
        folder = run.folder.export(event.step)
        if folder.exists():  # else an earlier attempt has stored it
            if event.step >= run.stored_step:  # else one on another machine has
                await _store_export(run, event, folder)
            await _on_disk(remove_whole, folder)
        del run.exports[0]


async def store_checkpoint(run: Run, *, max_bytes: int) -> bool:
    """Store the newest checkpoint that is told; say whether the database has it now.

    An export that it owes is stored already, by `store_exports` just before: who carries on makes
    that no more.
    The run deletes checkpoints as it goes on, hence a copy by links. Of a run whose checkpoints are
    too large for the database none is looked at again.
    """
    if run.too_large:
        return False
    found = run.folder.latest_checkpoint(upto=run.saved_step)
    if found is None or step_of(found) <= run.stored_step:
        return _has_stored_newest(run)
    leaving = run.folder.leaving / found.name
    await _on_disk(shutil.rmtree, leaving, ignore_errors=True)  # a try that failed
    try:
        await _on_disk(link_checkpoint, found, leaving)
    except FileNotFoundError:  # the run was faster; its next one is as good
        await _on_disk(shutil.rmtree, leaving, ignore_errors=True)
        return False
    size = sum(path.stat().st_size for path in leaving.rglob("*") if path.is_file())
    if size > max_bytes:
        run.too_large = True
        await _on_disk(shutil.rmtree, leaving)  # else its links keep what the run deletes
        await _warn_too_large(run, size, max_bytes)
        return False
    stored = await store(run, leaving)

    async def keep(tx: AsyncSession) -> None:
        await lease.add_resume_state(tx, run.claim, step=step_of(found), blob_id=stored.blob_id)

    await patiently(run, lambda: own(run, stored, keep))
    run.stored_step = step_of(found)
    log.info("checkpoint.stored", job_id=run.claim.job_id, step=run.stored_step, bytes=size)
    await _on_disk(shutil.rmtree, leaving)
    return _has_stored_newest(run)


def _has_stored_newest(run: Run) -> bool:
    newest = run.folder.latest_checkpoint()
    return newest is None or step_of(newest) <= run.stored_step


async def store(run: Run, folder: Path) -> StoredBytes:
    """Put a folder's archive into the database and prove it by reading it back."""
    return await patiently(run, lambda: _write(run, folder))


async def own(
    run: Run, stored: StoredBytes, give: Callable[[AsyncSession], Awaitable[None]]
) -> None:
    """Give stored bytes their owner, once: a commit may be done although its answer was lost."""
    async with run.db.transaction() as tx:
        await lease.renew(tx, run.claim)
        if not await blobs.is_ready(tx, stored.blob_id):
            await blobs.seal(tx, stored)
            await give(tx)


async def _write(run: Run, folder: Path) -> StoredBytes:
    stored = await blobs.write(
        run.db, run.claim.organization_id, archive.stream(folder), writer=run.claim.writer
    )
    await blobs.verify(run.db, stored)
    return stored


async def _store_export(run: Run, event: CheckpointSaved, folder: Path) -> None:
    stored = await store(run, folder)

    async def show(tx: AsyncSession) -> None:
        await lease.add_checkpoint(
            tx, run.claim, step=event.step, metrics=dict(event.metrics), blob_id=stored.blob_id
        )

    await patiently(run, lambda: own(run, stored, show))


async def _on_disk(function: Callable[..., T], *args: Any, **options: Any) -> T:
    """Call in a thread, to the end: whoever is cancelled leaves no thread at work on its files."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **options))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):  # once more
                await asyncio.wait([work])
        raise


async def _warn_too_large(run: Run, size: int, max_bytes: int) -> None:
    """Say that another worker cannot carry the job on."""
    message = (
        f"A checkpoint of this run has {size:,} bytes, more than the {max_bytes:,} that are kept in"
        " the database: if this worker is lost, another starts the job from its first step"
    )
    warned = Warned(at=time.time(), code="checkpoint_too_large", message=message)

    async def tell() -> None:
        async with run.db.transaction() as tx:
            await lease.renew(tx, run.claim)
            await lease.record(tx, run.claim, [warned])

    await patiently(run, tell)
