"""Claims a job, prepares its run, launches it, relays what it says, and finishes it. Torch-free."""

import asyncio
import csv
import hashlib
import io
import shutil
import threading
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from sqlalchemy.exc import DBAPIError

from app import blobs
from app.blobs import StoredBytes
from app.db import Database, connected
from app.errors import ModelNotFound
from app.files import service as files
from app.jobs import lease, sources
from app.jobs.lease import Claim, Failure, LeaseLostError
from app.jobs.spec import CheckpointSaved, Failed, Finished, TrainEvent
from app.models import catalog
from app.settings import Settings
from worker import archive, launcher
from worker.devices import DevicePool
from worker.outcome import (
    Cancelled,
    FailedRun,
    Interrupted,
    Outcome,
    Paused,
    Succeeded,
    outcome,
)
from worker.rundir import LineTail, Placement, RunDir, parse_events, write_atomic

log = structlog.get_logger()

RELAY_S = 1.0
STOP_GRACE_S = 30.0
FAILED_GRACE_S = 5.0  # ranks may hang, waiting for the one that failed
GIVE_UP_S = lease.LEASE_S * 2 / 3
RESULT_COLUMNS = {
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
}


@dataclass
class Run:
    """One attempt at a job on this machine."""

    db: Database
    claim: Claim
    folder: RunDir
    shutdown: threading.Event
    events: LineTail = field(init=False)
    printed: LineTail = field(init=False)
    last: TrainEvent | None = None
    stop: str | None = None
    renewed_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.events = LineTail(self.folder.events)
        self.printed = LineTail(self.folder.log)


async def run_next(
    settings: Settings,
    environment: Mapping[str, str],
    *,
    worker: str,
    devices: DevicePool,
    shutdown: threading.Event,
) -> bool:
    """Run the best waiting job that the free devices can hold to its end; False when none waits."""
    async with connected(settings.database_url) as db:
        claim, held = await claim_job(db, worker, devices)
        if claim is None:
            return False
        bound = log.bind(job_id=claim.job_id, attempt=claim.attempt)
        bound.info("job.claimed", devices=held)
        run = Run(db, claim, RunDir(_runs(settings) / claim.job_id), shutdown)
        try:
            await _run(run, settings, environment, devices=held)
        except LeaseLostError:
            bound.warning("job.lease_lost")
        finally:
            devices.give_back(held)
        return True


async def claim_job(
    db: Database, worker: str, devices: DevicePool
) -> tuple[Claim | None, list[str]]:
    """Take a job and its devices. One thread at a time: what it saw free is free when it takes."""
    with devices.claiming:
        if not devices.free:
            return None, []
        async with db.transaction() as tx:
            claim = await lease.claim(tx, worker, devices=devices.free)
        return claim, devices.take(claim.spec.resources.gpus) if claim else []


async def _run(
    run: Run, settings: Settings, environment: Mapping[str, str], *, devices: Sequence[str]
) -> None:
    try:
        placement = await _prepare(run, settings)
    except ModelNotFound as error:
        await _finish(run, FailedRun(Failure("base_model_unreadable", error.message, error.param)))
        return
    process = await launcher.launch(
        launcher.train_command(run.folder.path, run.claim.spec.resources),
        environment=launcher.train_environment(
            environment, devices=devices, offline=placement.source == "folder"
        ),
        log=run.folder.log,
    )
    try:
        exit_code = await _watch(run, process)
    finally:
        await launcher.kill(process)
    await _finish(run, outcome(exit_code, run.last, stop=run.stop))


async def _prepare(run: Run, settings: Settings) -> Placement:
    """Write the run folder; what an earlier attempt left to resume from stays."""
    folder, claim = run.folder, run.claim
    folder.path.mkdir(parents=True, exist_ok=True)
    for stale in (folder.events, folder.failure, folder.log):
        stale.unlink(missing_ok=True)
    base = catalog.find(
        claim.spec.base_model, settings.models_dir, settings.hub_revisions, settings.hub_tasks
    )
    placement = Placement(source=base.source, location=base.location, revision=base.revision)
    async with run.db.transaction() as tx:
        train, valid = await lease.input_blobs(tx, claim)
    await _fetch(run.db, train, folder.train)
    if valid:
        await _fetch(run.db, valid, folder.valid)
    if claim.spec.peft.source is not None:
        await _fetch_source(run, claim.spec.peft.source)
    write_atomic(folder.placement, placement.model_dump_json().encode())
    write_atomic(folder.spec, claim.spec.model_dump_json(indent=2).encode())
    return placement


async def _fetch_source(run: Run, name: str) -> None:
    """Unpack the adapter that the run goes on from."""
    async with run.db.transaction() as tx:
        source = await sources.find(tx, run.claim.organization_id, name)
    archived = run.folder.source.with_suffix(".tar")
    await _fetch(run.db, source.blob_id, archived)
    await asyncio.to_thread(archive.unpack, archived, run.folder.source)
    archived.unlink()


async def _watch(run: Run, process: Process) -> int:
    """Relay until the run is over; pass stop requests on. Returns its exit code."""
    deadline: float | None = None
    ended = asyncio.ensure_future(process.wait())
    while not ended.done():
        await asyncio.wait([ended], timeout=RELAY_S)
        await _relay_or_wait(run)
        if run.stop is None and run.shutdown.is_set():
            run.stop = "shutdown"
        if run.stop == "cancel":
            deadline = time.monotonic()
        elif run.stop and deadline is None:
            deadline = time.monotonic() + STOP_GRACE_S
            launcher.ask(process)
        if isinstance(run.last, Failed) and deadline is None:
            deadline = time.monotonic() + FAILED_GRACE_S
        if deadline is not None and time.monotonic() >= deadline:
            await launcher.kill(process)
    await _relay(run)
    return await ended


async def _relay_or_wait(run: Run) -> None:
    """Relay; while the database is away keep training, but not past two thirds of the lease."""
    try:
        await _relay(run)
    except DBAPIError as error:
        log.warning("relay.postponed", job_id=run.claim.job_id, error=str(error.orig))
        if time.monotonic() - run.renewed_at > GIVE_UP_S:
            raise LeaseLostError(f"{run.claim.job_id}: not renewed in time") from error


async def _relay(run: Run) -> None:
    """Move whole new lines into the database: one transaction with the lease's renewal."""
    events_mark, printed_mark = run.events.mark(), run.printed.mark()
    said = list(parse_events(run.events.read()))
    printed = run.printed.read().decode(errors="replace").replace("\0", "")
    try:
        async with run.db.transaction() as tx:
            stop = await lease.renew(tx, run.claim)
            await lease.record(tx, run.claim, said)
            if printed:
                await lease.add_log(tx, run.claim, printed)
    except DBAPIError:
        run.events.back_to(events_mark)
        run.printed.back_to(printed_mark)
        raise
    run.renewed_at = time.monotonic()
    run.stop = stop if stop == "cancel" else run.stop or stop
    run.last = said[-1] if said else run.last
    for event in said:
        if isinstance(event, CheckpointSaved):
            await _store_checkpoint(run, event)


async def _store_checkpoint(run: Run, event: CheckpointSaved) -> None:
    folder = run.folder.path / event.folder
    stored = await _store(run, folder)
    async with run.db.transaction() as tx:
        await lease.renew(tx, run.claim)
        await blobs.seal(tx, stored)
        await lease.add_checkpoint(
            tx, run.claim, step=event.step, metrics=dict(event.metrics), blob_id=stored.blob_id
        )
    await asyncio.to_thread(shutil.rmtree, folder)


async def _finish(run: Run, result: Outcome) -> None:
    log.info("job.ended", job_id=run.claim.job_id, outcome=type(result).__name__)
    if isinstance(result, Succeeded):
        await _succeed(run, result.finished)
        await asyncio.to_thread(shutil.rmtree, run.folder.path)
        return
    async with run.db.transaction() as tx:
        match result:
            case FailedRun(failure):
                await lease.fail(tx, run.claim, failure)
            case Cancelled():
                await lease.cancel(tx, run.claim)
            case Paused():
                await lease.pause(tx, run.claim)
            case Interrupted():
                await lease.give_back(tx, run.claim, "The worker shut down; the job waits again")
    if not isinstance(result, Interrupted | Paused):
        await asyncio.to_thread(shutil.rmtree, run.folder.path)


async def _succeed(run: Run, finished: Finished) -> None:
    adapter = await _store(run, run.folder.adapter)
    results = await blobs.write(run.db, run.claim.organization_id, _results(run))
    async with run.db.transaction() as tx:
        await blobs.seal(tx, adapter)
        file = await files.add(
            tx,
            run.claim.organization_id,
            results,
            filename="step_metrics.csv",
            purpose=files.RESULTS_PURPOSE,
            rows=None,
            row_format=None,
        )
        await lease.succeed(
            tx, run.claim, finished, adapter_blob_id=adapter.blob_id, result_file_id=file.id
        )


async def _store(run: Run, folder: Path) -> StoredBytes:
    """Put a folder's archive into the database and prove it by reading it back."""
    target = folder.with_name(folder.name + ".tar")
    await asyncio.to_thread(archive.pack, folder, target)
    stored = await blobs.write(run.db, run.claim.organization_id, archive.read(target))
    digest = hashlib.sha256()
    async for data in blobs.read(run.db, stored.blob_id):
        digest.update(data)
    if digest.hexdigest() != stored.sha256:
        raise OSError(f"the database returned other bytes than were stored: {stored.blob_id}")
    target.unlink()
    return stored


async def _results(run: Run) -> AsyncIterator[bytes]:
    """Yield OpenAI's result CSV; cells between evaluations are empty."""
    async with run.db.transaction() as tx:
        rows = await lease.metric_rows(tx, run.claim, list(RESULT_COLUMNS.values()))
    steps: dict[int, dict[str, float]] = {}
    for step, name, value in rows:
        steps.setdefault(step, {})[name] = value
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["step", *RESULT_COLUMNS])
    for step, values in steps.items():
        writer.writerow([step, *(values.get(name, "") for name in RESULT_COLUMNS.values())])
    yield out.getvalue().encode()


async def _fetch(db: Database, blob_id: str, target: Path) -> None:
    with target.open("wb") as file:
        async for data in blobs.read(db, blob_id):
            await asyncio.to_thread(file.write, data)


def _runs(settings: Settings) -> Path:
    return settings.data_dir / "runs"
