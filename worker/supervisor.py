"""Claims a job, prepares its run, launches it, relays what it says, and finishes it. Torch-free."""

import asyncio
import csv
import errno
import io
import shutil
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app import blobs, tars, tracing
from app.db import Database, connected
from app.errors import ModelNotFound
from app.files import service as files
from app.jobs import lease, sources
from app.jobs.lease import Claim, Failure, LeaseLostError
from app.jobs.spec import EvalDone, Failed, Finished, RolloutSampled, StepDone, TrainEvent
from app.models import catalog
from app.settings import Settings
from app.tables import ResumeState
from worker import launcher, leftovers, memory
from worker.devices import DevicePool
from worker.outcome import (
    DISK_FULL,
    Cancelled,
    FailedRun,
    Interrupted,
    Lost,
    Outcome,
    Paused,
    Succeeded,
    outcome,
)
from worker.relay import relay
from worker.run import AWAY_S, DATABASE_AWAY, Run, guard, keep, patiently
from worker.rundir import Placement, RunDir, step_of, write_atomic
from worker.uploads import end_upload, own, store, store_checkpoint, store_exports, upload
from worker.warm import WarmTrainers

log = structlog.get_logger()

RELAY_S = 1.0
LOOK_S = 0.05  # for the first step: somebody may be waiting for it
STOP_GRACE_S = 30.0
FAILED_GRACE_S = 5.0  # ranks may hang, waiting for the one that failed
REST_S = 60.0  # of a worker that had a fault: others are to have its job, and those that wait
BUDGET_GRACE_S = 120.0  # to end the step, evaluate, and prove the adapter
FULL_BYTES = 1 << 18  # so little is left only where something failed to write more
RESULT_COLUMNS = {
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
}


async def run_next(
    settings: Settings,
    environment: Mapping[str, str],
    *,
    worker: str,
    devices: DevicePool,
    warm: WarmTrainers | None,
    shutdown: threading.Event,
) -> bool:
    """Run the best waiting job that the free devices can hold to its end.

    Returns whether to look for the next one: not when none waits, nor after a fault of the worker.
    The next job might meet that as well, hence the worker rests.
    """
    async with connected(settings.database_url) as db:
        claim, held = await claim_job(db, worker, devices, shutdown)
        if claim is None:
            return False
        folder = RunDir(settings.runs_dir / claim.job_id / f"attempt-{claim.attempt}")
        run, failed = Run(db, claim, folder, shutdown), False
        traced: dict[str, tracing.Value] = {
            "basin.job_id": claim.job_id,
            "basin.attempt": claim.attempt,
        }
        with (
            structlog.contextvars.bound_contextvars(job_id=claim.job_id, attempt=claim.attempt),
            tracing.span("run", parent=claim.traceparent, attributes=traced),
        ):
            log.info("job.claimed", devices=held)
            try:
                await _hold(run, settings, environment, devices=held, warm=warm)
            except* LeaseLostError as lost:
                log.warning("job.lease_lost", why=str(lost.exceptions[0]))
                await _let_go(run)
            except* Exception as fault:
                log.exception("job.worker_failed")
                failed = await _give_back(run, fault.exceptions[0])
                if failed:
                    devices.rest(REST_S)
            finally:
                devices.give_back(held)
        return not failed


async def _let_go(run: Run) -> None:
    """Give up what this attempt was storing when it lost the job: nobody will own it."""
    with suppress(*DATABASE_AWAY):  # then the sweep finds it abandoned
        async with run.db.transaction() as tx:
            await blobs.give_up_of(tx, run.claim.writer)


async def _give_back(run: Run, fault: Exception) -> bool:
    """Let a job be tried again, here or elsewhere, that this worker had a fault with.

    Returns whether the job was its still; else it may have had the fault by that.
    """
    message = (
        f"The worker could not go on with the run ({type(fault).__name__}); its own log, which its"
        " operator can read, says why."
    )
    full = isinstance(fault, OSError) and fault.errno == errno.ENOSPC
    failure = DISK_FULL if full else Failure("worker_failed", message)
    try:
        async with run.db.transaction() as tx:
            await lease.lose(tx, run.claim, failure)
    except LeaseLostError:
        await _let_go(run)
        return False
    except DATABASE_AWAY as error:  # then the lease runs out
        log.warning("job.not_given_back", error=str(error.orig))
    return True


async def claim_job(
    db: Database, worker: str, devices: DevicePool, shutdown: threading.Event
) -> tuple[Claim | None, list[str]]:
    """Take a job and its devices. One thread at a time: what it saw free is free when it takes.

    A worker that shuts down takes none, not even the one that it has just given back; nor does one
    that rests.
    """
    with devices.claiming:
        if shutdown.is_set() or devices.rests or not devices.free:
            return None, []
        async with db.transaction() as tx:
            claim = await lease.claim(tx, worker, free=devices.free, total=len(devices.all))
        return claim, devices.take(claim.spec.resources.gpus) if claim else []


async def _hold(
    run: Run,
    settings: Settings,
    environment: Mapping[str, str],
    *,
    devices: Sequence[str],
    warm: WarmTrainers | None,
) -> None:
    """Run the job while the hold on it is kept; whichever task fails ends the others."""
    async with asyncio.TaskGroup() as group:
        run.uploading = group.create_task(upload(run, max_bytes=settings.max_resume_bytes))
        beside = [group.create_task(keep(run)), group.create_task(guard(run)), run.uploading]
        try:
            await _run(run, settings, environment, devices=devices, warm=warm)
        finally:
            for task in beside:
                task.cancel()


async def _run(
    run: Run,
    settings: Settings,
    environment: Mapping[str, str],
    *,
    devices: Sequence[str],
    warm: WarmTrainers | None,
) -> None:
    try:
        with tracing.span("prepare"):
            placement = await _prepare(run, settings)
        with tracing.span("train"):
            its_own = launcher.train_environment(
                environment, devices=devices, offline=placement.source == "folder"
            )
            result = await _train(run, placement, its_own, warm=warm)
            run.spans.flush()
    except ModelNotFound as error:
        result = FailedRun(Failure("base_model_unreadable", error.message, error.param))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        await _relay_rest(run)  # what earlier attempts saved: no run began that would tell
        result = Lost(DISK_FULL)
    with tracing.span("finish", attributes={"basin.outcome": type(result).__name__}):
        await _finish(run, result, max_resume_bytes=settings.max_resume_bytes)


async def _train(
    run: Run, placement: Placement, environment: Mapping[str, str], *, warm: WarmTrainers | None
) -> Outcome:
    """Launch the run, see it to its end, and judge that."""
    kills = memory.oom_kills()
    run.process = await _launch(run, environment, warm)
    try:
        exit_code = await _watch(run, run.process, ends_at=placement.ends_at)
    finally:
        await launcher.kill(run.process)
        await asyncio.to_thread(leftovers.end_processes, run.folder.path)
    told = memory.killed(run.claim.spec, run.last_step) if memory.oom_kills() > kills else None
    free = await asyncio.to_thread(shutil.disk_usage, run.folder.path)
    return outcome(
        exit_code,
        run.last,
        stop=run.stop,
        out_of_memory=told,
        disk_full=free.free < FULL_BYTES,
    )


async def _launch(
    run: Run, environment: Mapping[str, str], warm: WarmTrainers | None
) -> launcher.Running:
    """Begin in the process that waits for it, or start one; ranks are torchrun's to start."""
    folder, resources = run.folder, run.claim.spec.resources
    waits = warm.take(environment) if warm is not None and not resources.ranked else None
    if waits is not None and await waits.begin(folder.path):
        return waits
    return await launcher.launch(
        launcher.train_command(folder.path, resources), environment=environment, log=folder.log
    )


async def _prepare(run: Run, settings: Settings) -> Placement:
    """Write the run folder, with what an earlier attempt left to carry on from."""
    folder, claim = run.folder, run.claim
    base = catalog.find(
        claim.spec.base_model, settings.models_dir, settings.hub_revisions, settings.hub_tasks
    )
    placement = Placement(
        source=base.source,
        location=base.location,
        revision=base.revision,
        ends_at=_ends_at(claim),
    )
    folder.path.mkdir(parents=True, exist_ok=True)
    said = await asyncio.to_thread(leftovers.adopt, folder)
    await patiently(run, lambda: _tell_untold(run, said))
    await asyncio.to_thread(leftovers.remove_earlier, folder)
    train, valid, state = await patiently(run, lambda: _inputs(run))
    run.stored_step = state.step if state else 0
    await _fetch(run, train, folder.train)
    if valid:
        await _fetch(run, valid, folder.valid)
    if claim.spec.peft.source is not None:
        await _fetch_source(run, claim.spec.peft.source)
    if state is not None:
        await _fetch_checkpoint(run, state)
    write_atomic(folder.placement, placement.model_dump_json().encode())
    write_atomic(folder.spec, claim.spec.model_dump_json(indent=2).encode())
    return placement


async def _inputs(run: Run) -> tuple[str, str | None, ResumeState | None]:
    """Return the blobs of its files, and what another worker left."""
    async with run.db.transaction() as tx:
        train, valid = await lease.input_blobs(tx, run.claim)
        return train, valid, await lease.resume_state(tx, run.claim)


async def _fetch(run: Run, blob_id: str, target: Path) -> None:
    await patiently(run, lambda: blobs.fetch(run.db, blob_id, target))


def _ends_at(claim: Claim) -> float | None:
    """Return when the job's budget of time is spent, on the monotonic clock of this machine."""
    limit_s = claim.spec.budget.max_duration_s
    return None if limit_s is None else time.monotonic() + max(limit_s - claim.ran_s, 0.0)


async def _fetch_source(run: Run, name: str) -> None:
    """Unpack the adapter that the run goes on from."""

    async def find() -> str:
        async with run.db.transaction() as tx:
            source = await sources.find(tx, run.claim.organization_id, name)
            return source.blob_id

    await _unpack(run, await patiently(run, find), run.folder.source)


async def _fetch_checkpoint(run: Run, state: ResumeState) -> None:
    """Unpack what another worker left, unless this machine has as much."""
    found = run.folder.latest_checkpoint()
    if found is None or step_of(found) < state.step:
        await _unpack(run, state.blob_id, run.folder.checkpoint(state.step))


async def _unpack(run: Run, blob_id: str, target: Path) -> None:
    """Let the folder of an archive appear, complete."""
    archived, temporary = target.with_suffix(".tar"), target.with_suffix(".tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    await _fetch(run, blob_id, archived)
    await asyncio.to_thread(tars.unpack, archived, temporary)
    temporary.rename(target)
    archived.unlink()


async def _tell_untold(run: Run, said: Sequence[TrainEvent]) -> None:
    """Tell of steps that an earlier attempt took, and could not: this one does not repeat them."""
    found = run.folder.latest_checkpoint()
    upto = step_of(found) if found else -1
    async with run.db.transaction() as tx:
        await lease.renew(tx, run.claim)
        told, evaluated = await lease.told_step(tx, run.claim)
        untold = [
            event
            for event in said
            if (isinstance(event, StepDone | RolloutSampled) and told < event.step <= upto)
            or (isinstance(event, EvalDone) and told + evaluated <= event.step <= upto)
        ]
        await lease.record(tx, run.claim, untold)


async def _watch(run: Run, process: launcher.Running, *, ends_at: float | None) -> int:
    """Relay until the run is over; pass stop requests on. Returns its exit code."""
    kill_at: float | None = None
    ended = asyncio.ensure_future(process.wait())
    while not ended.done():
        await _next_relay(run, ended)
        await _relay_or_wait(run)
        kill_at = _stop(run, process, kill_at, ends_at=ends_at)
        if kill_at is not None and time.monotonic() >= kill_at:
            await launcher.kill(process)
    await _relay_rest(run)
    return await ended


async def _relay_rest(run: Run) -> None:
    """Relay all that was said."""
    while await patiently(run, lambda: relay(run)):
        pass


async def _next_relay(run: Run, ended: asyncio.Future[int]) -> None:
    """Wait a second, or until the run ends; until its first step is told, for whatever it says."""
    if run.last_step is not None:
        await asyncio.wait([ended], timeout=RELAY_S)
        return
    for _ in range(round(RELAY_S / LOOK_S)):
        await asyncio.wait([ended], timeout=LOOK_S)
        if ended.done() or run.events.has_grown():
            return


def _stop(
    run: Run, process: launcher.Running, kill_at: float | None, *, ends_at: float | None
) -> float | None:
    """Pass on what the run is asked to do; return when it is to be killed, if it is."""
    now = time.monotonic()
    if run.stop is None and run.shutdown.is_set():
        run.stop = "shutdown"
    if run.stop == "cancel":
        return now
    if kill_at is not None:
        return kill_at
    if run.stop is not None:
        launcher.ask(process)
        return now + STOP_GRACE_S
    if isinstance(run.last, Failed):
        return now + FAILED_GRACE_S
    if ends_at is not None and now >= ends_at + BUDGET_GRACE_S:
        run.stop = "budget"
        return now
    return None


async def _relay_or_wait(run: Run) -> None:
    """Relay; while the database is away let the run train on."""
    try:
        await relay(run)
    except DATABASE_AWAY as error:
        log.warning("relay.postponed", job_id=run.claim.job_id, error=str(error.orig))
        await asyncio.sleep(AWAY_S)


async def _finish(run: Run, result: Outcome, *, max_resume_bytes: int) -> None:
    log.info("job.ended", job_id=run.claim.job_id, outcome=type(result).__name__)
    await end_upload(run)
    goes_on = isinstance(result, Paused | Interrupted | Lost)
    stored = False
    if not isinstance(result, Cancelled):
        await store_exports(run)
    if goes_on:
        stored = await store_checkpoint(run, max_bytes=max_resume_bytes)
    run.ending = True
    if isinstance(result, Succeeded):
        await _succeed(run, result.finished)
    else:
        await patiently(run, lambda: _end(run, result))
    if stored or not goes_on:
        await asyncio.to_thread(leftovers.remove, run.folder)


async def _end(run: Run, result: Outcome) -> None:
    async with run.db.transaction() as tx:
        match result:
            case FailedRun(failure):
                await lease.fail(tx, run.claim, failure)
            case Lost(failure):
                await lease.lose(tx, run.claim, failure)
            case Cancelled():
                await lease.cancel(tx, run.claim)
            case Paused():
                await lease.pause(tx, run.claim)
            case Interrupted():
                await lease.give_back(tx, run.claim, "The worker shut down; the job waits again")


async def _succeed(run: Run, finished: Finished) -> None:
    adapter = await store(run, run.folder.adapter)
    results = await patiently(
        run,
        lambda: blobs.write(
            run.db, run.claim.organization_id, _results(run), writer=run.claim.writer
        ),
    )

    async def succeed(tx: AsyncSession) -> None:
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

    await patiently(run, lambda: own(run, adapter, succeed))


async def _results(run: Run) -> AsyncIterator[bytes]:
    """Yield OpenAI's result CSV, our other metrics after its columns; absent values are empty."""
    async with run.db.transaction() as tx:
        rows = await lease.metric_rows(tx, run.claim)
    theirs = RESULT_COLUMNS.values()
    names = [*theirs, *sorted({name for _, name, _ in rows} - set(theirs))]
    steps: dict[int, dict[str, float]] = {}
    for step, name, value in rows:
        steps.setdefault(step, {})[name] = value
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["step", *RESULT_COLUMNS, *names[len(RESULT_COLUMNS) :]])
    for step, values in steps.items():
        writer.writerow([step, *(values.get(name, "") for name in names)])
    yield out.getvalue().encode()
