"""A worker's hold on a job: claimed under a row's lock, renewed by the database's clock, fenced."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import BigInteger, bindparam, delete, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncSession

from app import blobs
from app.ids import new_id
from app.jobs import events, queue, rollouts
from app.jobs.events import Told
from app.jobs.spec import (
    EvalDone,
    Event,
    Finished,
    RolloutSampled,
    Started,
    StepDone,
    TrainEvent,
    TrainSpec,
    Warned,
)
from app.jobs.states import SOURCES, TERMINAL, JobStatus
from app.tables import Attempt, Checkpoint, File, Job, LogChunk, Metric, ResumeState
from app.webhooks import outbox

log = structlog.get_logger()

LEASE_S = 60
MAX_LOST_ATTEMPTS = 3  # in a row, without a resume state in between
RESUME_STATES = 2
CANCEL_SILENCE_S = 15  # a worker that renews each second and was silent so long has gone
RETRY_S = 10  # before a killed run is tried again; twice as long the next time
NO_WORD = re.compile(r"[^\w.-]+")
# All values in one parameter: several times as fast as a statement a row. They are text, as JSON
# has no NaN. What is told again, as its commit's answer was lost, stays where it was.
_STORE = text(
    """
    INSERT INTO metrics AS kept (job_id, attempt, name, step, seq, value, ts)
    SELECT :job_id, :attempt, told->>0, (told->>1)::bigint, (told->>2)::bigint,
      (told->>3)::double precision, to_timestamp((told->>4)::double precision)
    FROM jsonb_array_elements(:told) AS told
    ON CONFLICT (job_id, name, step) DO UPDATE
    SET attempt = excluded.attempt, seq = excluded.seq, value = excluded.value, ts = excluded.ts
    WHERE kept.attempt < excluded.attempt
      OR kept.attempt = excluded.attempt AND kept.value IS DISTINCT FROM excluded.value
    """
).bindparams(bindparam("attempt", type_=BigInteger), bindparam("told", type_=JSONB))
_LEASE = text(f"now() + interval '{LEASE_S} seconds'")
_EXPIRED = Job.lease_until < func.now()
_SILENT = Job.lease_until < text(f"now() + interval '{LEASE_S - CANCEL_SILENCE_S} seconds'")


class LeaseLostError(Exception):
    """Another attempt owns the job, or it is over: nothing more may be written for this one."""


@dataclass(frozen=True)
class Claim:
    """The right to run a job: every write carries the attempt and is refused when it is old."""

    job_id: str
    organization_id: str
    attempt: int
    spec: TrainSpec
    training_file_id: str
    validation_file_id: str | None
    suffix: str | None
    step: int  # how far earlier attempts told
    ran_s: float  # how long earlier attempts ran, in seconds
    traceparent: str | None = None

    @property
    def writer(self) -> str:
        """Return what the bytes that this attempt stores are marked with."""
        return _writer(self.job_id, self.attempt)


@dataclass(frozen=True)
class Failure:
    """Why a job failed, for the user."""

    code: str
    message: str
    param: str | None = None


async def claim(
    tx: AsyncSession, worker: str, *, free: int, total: int | None = None
) -> Claim | None:
    """Take the best waiting job that fits `free` of the worker's `total` devices, or none.

    Two workers never take the same one. Those that a newer version accepted, which this one cannot
    read, are left to others.
    """
    found = await _best(tx, free=free, total=total or free)
    if found is None:
        return None
    job_id, spec = found
    taken = (
        update(Job)
        .where(Job.id == job_id)
        .values(
            status=JobStatus.RUNNING,
            attempt=Job.attempt + 1,
            lease_until=_LEASE,
            worker=worker,
            retry_at=None,
            started_at=func.coalesce(Job.started_at, func.now()),
        )
        .returning(Job)
    )
    job = (await tx.scalars(taken)).one()
    ran_s = await _ran_s(tx, job.id)
    tx.add(Attempt(job_id=job.id, number=job.attempt, worker=worker))
    events.add(tx, job.id, "Fine-tuning job started", data={"attempt": job.attempt})
    return Claim(
        job_id=job.id,
        organization_id=job.organization_id,
        attempt=job.attempt,
        spec=spec,
        training_file_id=job.training_file_id,
        validation_file_id=job.validation_file_id,
        suffix=job.suffix,
        step=job.step,
        ran_s=ran_s,
        traceparent=job.traceparent,
    )


async def _best(tx: AsyncSession, *, free: int, total: int) -> tuple[str, TrainSpec] | None:
    """Lock the job to take, which nobody else can take then, and return its id and what it asks."""
    held = await queue.hold_limited(tx)
    best = queue.best(free=free, total=total, held=held).add_columns(Job.spec)
    not_ours: list[str] = []
    while True:
        row = (await tx.execute(best.where(Job.id.not_in(not_ours)))).first()
        if row is None:
            return None
        try:
            return row.id, TrainSpec.model_validate(row.spec)
        except ValidationError as error:
            log.warning("job.not_understood", job_id=row.id, why=str(error))
            not_ours.append(row.id)


async def renew(tx: AsyncSession, held: Claim) -> str | None:
    """Hold on for another minute and return what stop was asked for. Locks the row: the fence.

    Raises:
        LeaseLostError: the job is no longer this attempt's.
    """
    row = await tx.execute(
        _held(held).values(lease_until=_LEASE).returning(Job.id, Job.stop_requested)
    )
    found = row.first()
    if found is None:
        raise LeaseLostError(f"{held.job_id} attempt {held.attempt}")
    stop: str | None = found.stop_requested
    return stop


async def record(tx: AsyncSession, held: Claim, said: Sequence[TrainEvent]) -> None:
    """Store what a run said: metrics, rollouts, the job's story, its progress. Call `renew` first.

    Raises:
        LeaseLostError: the job is no longer this attempt's.
    """
    measured = [event for event in said if isinstance(event, StepDone | EvalDone)]
    if measured:
        await _store_metrics(tx, held, measured, first_seq=await _progress(tx, held, measured))
    sampled = [event for event in said if isinstance(event, RolloutSampled)]
    await rollouts.store(tx, held.job_id, held.attempt, sampled)
    await events.add_all(tx, held.job_id, [line for event in said for line in _told(held, event)])
    for event in said:
        if isinstance(event, Started):
            await tx.execute(_held(held).values(total_steps=event.total_steps))
            await tx.execute(_attempt(held).values(first_step=event.first_step))


async def add_log(tx: AsyncSession, held: Claim, printed: str) -> None:
    """Keep what a run printed."""
    tx.add(LogChunk(job_id=held.job_id, attempt=held.attempt, text=printed))
    await tx.flush()


async def add_checkpoint(
    tx: AsyncSession, held: Claim, *, step: int, metrics: dict[str, Any], blob_id: str
) -> None:
    """Show an adapter from the middle of the run; the same step of an earlier attempt gives way."""
    here = (Checkpoint.job_id == held.job_id) & (Checkpoint.step == step)
    await blobs.discard(tx, *(await tx.scalars(select(Checkpoint.blob_id).where(here))))
    values = {"metrics": metrics, "blob_id": blob_id}
    row = insert(Checkpoint).values(
        id=new_id("ftckpt_"),
        job_id=held.job_id,
        step=step,
        model=f"{model_name(held)}:ckpt-step-{step}",
        **values,
    )
    await tx.execute(row.on_conflict_do_update(index_elements=["job_id", "step"], set_=values))
    events.add(tx, held.job_id, f"Checkpoint created at step {step}", data={"step": step})


async def add_resume_state(tx: AsyncSession, held: Claim, *, step: int, blob_id: str) -> None:
    """Keep what another worker can carry on from, and of the earlier ones the last.

    A job that comes this far has not been killed by itself: lost attempts count from here again.
    Call `renew` first.
    """
    await tx.execute(_held(held).values(lost_attempts=0))
    own = ResumeState.job_id == held.job_id
    kept = select(ResumeState.step).where(own, ResumeState.step < step)
    kept = kept.order_by(ResumeState.step.desc()).limit(RESUME_STATES - 1)
    await _drop_resume_states(tx, own & ResumeState.step.not_in(kept))
    tx.add(ResumeState(job_id=held.job_id, step=step, attempt=held.attempt, blob_id=blob_id))
    await tx.flush()


async def told_step(tx: AsyncSession, held: Claim) -> tuple[int, bool]:
    """Return the last step that was told, and whether its evaluation was too, if it had one."""
    told = (Metric.job_id == Job.id) & (Metric.step == Job.step)
    evaluated = exists().where(told, Metric.name.startswith("valid_", autoescape=True))
    row = (await tx.execute(select(Job.step, evaluated).where(Job.id == held.job_id))).one()
    return row[0], row[1]


async def resume_state(tx: AsyncSession, held: Claim) -> ResumeState | None:
    """Return the newest state that the job can be carried on from."""
    query = select(ResumeState).where(ResumeState.job_id == held.job_id)
    return (await tx.scalars(query.order_by(ResumeState.step.desc()).limit(1))).first()


async def conclude(tx: AsyncSession, organization_id: str, job_id: str, status: JobStatus) -> None:
    """Do what follows from a job's end, in its transaction: every way to end comes by here.

    Its resume states are of no use any more, and who wants to know is told.
    """
    assert status in TERMINAL
    await _drop_resume_states(tx, ResumeState.job_id == job_id)
    await outbox.tell(tx, organization_id, job_id, status)


async def succeed(
    tx: AsyncSession, held: Claim, finished: Finished, *, adapter_blob_id: str, result_file_id: str
) -> None:
    """End a job well: artifact, model name, status and event in one transaction."""
    await _end(
        tx,
        held,
        JobStatus.SUCCEEDED,
        adapter_blob_id=adapter_blob_id,
        result_file_id=result_file_id,
        fine_tuned_model=model_name(held),
        trained_tokens=finished.trained_tokens,
        step=finished.step,
    )
    events.add(tx, held.job_id, "New fine-tuned model created", data={"model": model_name(held)})
    events.add(tx, held.job_id, "The job has successfully completed")


async def fail(tx: AsyncSession, held: Claim, failure: Failure) -> None:
    """End a job with a code and a sentence the user can act on."""
    await _end(
        tx,
        held,
        JobStatus.FAILED,
        reason=failure.message,
        error_code=failure.code,
        error_message=failure.message,
        error_param=failure.param,
    )
    events.add(tx, held.job_id, failure.message, level="error", data={"code": failure.code})


async def cancel(tx: AsyncSession, held: Claim) -> None:
    """End a job that its owner stopped."""
    await _end(tx, held, JobStatus.CANCELLED)
    events.add(tx, held.job_id, "The job was cancelled")


async def give_back(tx: AsyncSession, held: Claim, why: str) -> None:
    """Put a job back in the queue; its next attempt carries on from the last checkpoint."""
    if await _let_go(tx, held, "interrupted", why) == JobStatus.QUEUED:
        events.add(tx, held.job_id, why, level="warn")


async def pause(tx: AsyncSession, held: Claim) -> None:
    """Hold a job as its owner asked, or put it back when the owner has changed their mind."""
    if await _let_go(tx, held, "paused") == JobStatus.QUEUED:
        events.add(tx, held.job_id, "The job waits again")


async def lose(tx: AsyncSession, held: Claim, failure: Failure) -> None:
    """Put back a job whose run was killed, to try again a little later; fail it at the cap."""
    if await renew(tx, held) == "cancel":
        await cancel(tx, held)
        return
    counted = _held(held).values(lost_attempts=Job.lost_attempts + 1).returning(Job.lost_attempts)
    lost = (await tx.execute(counted)).scalar_one()
    if lost >= MAX_LOST_ATTEMPTS:
        await fail(tx, held, failure)
        return
    wait_s = RETRY_S * 2 ** (lost - 1)
    retry_at = text(f"now() + interval '{wait_s} seconds'")
    why = failure.message
    if await _let_go(tx, held, "killed", why, retry_at=retry_at) == JobStatus.QUEUED:
        why += f" It is tried again in {wait_s} s, from its last checkpoint"
    events.add(tx, held.job_id, why, level="warn", data={"code": failure.code})


async def requeue_expired(tx: AsyncSession) -> list[str]:
    """End or requeue jobs whose worker fell silent; return those to wake. Safe when run twice."""
    cancelled = (Job.stop_requested == "cancel") & _SILENT
    query = (
        select(Job)
        .where(Job.status == JobStatus.RUNNING, or_(_EXPIRED, cancelled))
        .with_for_update(skip_locked=True)
    )
    woken = []
    for job in await tx.scalars(query):
        await _end_lost_attempt(tx, job)
        job.lost_attempts += 1
        job.lease_until = job.worker = None
        if job.stop_requested == "cancel":
            job.status, job.finished_at = JobStatus.CANCELLED, func.now()
            events.add(tx, job.id, "The job was cancelled")
            await conclude(tx, job.organization_id, job.id, job.status)
        elif job.stop_requested == "pause":
            job.status, job.stop_requested = JobStatus.PAUSED, None
            events.add(tx, job.id, "The job was paused")
        elif job.lost_attempts >= MAX_LOST_ATTEMPTS:
            _poison(tx, job)
            await conclude(tx, job.organization_id, job.id, job.status)
        else:
            job.status, job.queued_at = JobStatus.QUEUED, func.now()
            events.add(tx, job.id, "The worker fell silent; the job waits again", level="warn")
            woken.append(job.id)
    await tx.flush()
    return woken


async def input_blobs(tx: AsyncSession, held: Claim) -> tuple[str, str | None]:
    """Return the blobs of the training and the validation file."""
    wanted = [held.training_file_id, held.validation_file_id]
    query = select(File.id, File.blob_id).where(
        File.id.in_([file_id for file_id in wanted if file_id]),
        File.organization_id == held.organization_id,
    )
    found: dict[str, str] = {row.id: row.blob_id for row in await tx.execute(query)}
    valid = found[held.validation_file_id] if held.validation_file_id else None
    return found[held.training_file_id], valid


async def metric_rows(tx: AsyncSession, held: Claim) -> list[tuple[int, str, float]]:
    """Return (step, name, value) of every metric, by step."""
    query = (
        select(Metric.step, Metric.name, Metric.value)
        .where(Metric.job_id == held.job_id)
        .order_by(Metric.step)
    )
    return [(row.step, row.name, row.value) for row in await tx.execute(query)]


def model_name(held: Claim) -> str:
    """Return OpenAI's form of a fine-tuned model's name; it stands in paths and command lines."""
    suffix = NO_WORD.sub("-", held.suffix or "").strip("-.")
    return ":".join(["ft", held.spec.base_model, held.organization_id, suffix, held.job_id[-8:]])


def _held(held: Claim) -> Any:
    return update(Job).where(
        Job.id == held.job_id, Job.attempt == held.attempt, Job.status == JobStatus.RUNNING
    )


def _attempt(held: Claim) -> Any:
    return update(Attempt).where(Attempt.job_id == held.job_id, Attempt.number == held.attempt)


async def _ran_s(tx: AsyncSession, job_id: str) -> float:
    """Return how long the attempts that are over ran."""
    lasted = func.extract("epoch", Attempt.ended_at - Attempt.started_at)
    query = select(func.coalesce(func.sum(lasted), 0)).where(Attempt.job_id == job_id)
    return float((await tx.execute(query)).scalar_one())


async def _end(
    tx: AsyncSession, held: Claim, status: JobStatus, *, reason: str | None = None, **values: Any
) -> None:
    assert status in TERMINAL and JobStatus.RUNNING in SOURCES[status]
    await _release(tx, held, status=status, finished_at=func.now(), worker=Job.worker, **values)
    await _end_attempt(tx, held, status, reason)
    await conclude(tx, held.organization_id, held.job_id, status)


async def _let_go(
    tx: AsyncSession, held: Claim, outcome: str, reason: str | None = None, **values: Any
) -> JobStatus:
    """End an attempt at a job that is not over, and return what becomes of the job.

    It waits again, unless its owner asked for something that the run did not hear any more.
    """
    stop = await renew(tx, held)
    if stop == "cancel":
        await cancel(tx, held)
        return JobStatus.CANCELLED
    status = JobStatus.PAUSED if stop == "pause" else JobStatus.QUEUED
    values |= {"status": status, "queued_at": func.now(), "stop_requested": None}
    await _release(tx, held, **values)
    await _end_attempt(tx, held, outcome, reason)
    if status == JobStatus.PAUSED:
        events.add(tx, held.job_id, "The job was paused")
    return status


async def _release(tx: AsyncSession, held: Claim, **values: Any) -> None:
    """Let go of a job.

    Raises:
        LeaseLostError: it is no longer this attempt's.
    """
    moved = await tx.execute(
        _held(held).values({"lease_until": None, "worker": None} | values).returning(Job.id)
    )
    if moved.first() is None:
        raise LeaseLostError(f"{held.job_id} attempt {held.attempt}")


async def _end_attempt(
    tx: AsyncSession, held: Claim, outcome: str, reason: str | None = None
) -> None:
    await tx.execute(_attempt(held).values(ended_at=func.now(), outcome=outcome, reason=reason))
    await blobs.give_up_of(tx, held.writer)


async def _end_lost_attempt(tx: AsyncSession, job: Job) -> None:
    """Close the attempt of a silent worker: it ended when it was last heard of."""
    heard = select(Job.lease_until - text(f"interval '{LEASE_S} seconds'")).where(Job.id == job.id)
    await tx.execute(
        update(Attempt)
        .where(Attempt.job_id == job.id, Attempt.ended_at.is_(None))
        .values(
            ended_at=func.greatest(Attempt.started_at, heard.scalar_subquery()),
            outcome="lost",
            reason="The worker fell silent.",
        )
    )
    await blobs.give_up_of(tx, _writer(job.id, job.attempt))


def _writer(job_id: str, attempt: int) -> str:
    return f"{job_id}/{attempt}"


async def _drop_resume_states(tx: AsyncSession, which: Any) -> None:
    dropped = delete(ResumeState).where(which).returning(ResumeState.blob_id)
    await blobs.discard(tx, *(await tx.scalars(dropped)))


def _poison(tx: AsyncSession, job: Job) -> None:
    message = (
        f"The worker died {MAX_LOST_ATTEMPTS} times while it ran this job; the job may be what"
        " kills it. The logs show how far it came."
    )
    job.status, job.finished_at = JobStatus.FAILED, func.now()
    job.error_code, job.error_message = "poison", message
    events.add(tx, job.id, message, level="error", data={"code": "poison"})


async def _progress(tx: AsyncSession, held: Claim, measured: Sequence[StepDone | EvalDone]) -> int:
    """Write down how far the run came, and return the number that its metrics begin with."""
    values: dict[str, Any] = {"metric_seq": Job.metric_seq + len(measured)}
    steps = [event for event in measured if isinstance(event, StepDone)]
    if steps:
        values |= {"step": steps[-1].step, "progress_at": _when(steps[-1])}
        await tx.execute(_attempt(held).values(last_step=steps[-1].step))
    row = (await tx.execute(_held(held).values(values).returning(Job.metric_seq))).first()
    if row is None:
        raise LeaseLostError(f"{held.job_id} attempt {held.attempt}")
    return int(row.metric_seq) - len(measured) + 1


async def _store_metrics(
    tx: AsyncSession, held: Claim, measured: Sequence[StepDone | EvalDone], *, first_seq: int
) -> None:
    """Put metrics in; those of an earlier attempt give way."""
    rows = {
        (name, event.step): (name, event.step, seq, str(value), event.at)
        for seq, event in enumerate(measured, first_seq)
        for name, value in event.metrics.items()
    }
    if rows:
        values = {"job_id": held.job_id, "attempt": held.attempt, "told": list(rows.values())}
        await tx.execute(_STORE, values)


def _told(held: Claim, event: TrainEvent) -> Iterator[Told]:
    """Yield for the job's story what a person would want to read."""
    match event:
        case Started():
            data = event.model_dump(mode="json", exclude={"at", "type"})
            where = "Training started" if event.first_step == 1 else "Training resumed"
            yield Told(f"{where} at step {event.first_step}", data=data)
        case StepDone():
            total = held.spec.total_steps
            message = f"Step {event.step}/{total}: train_loss={_short(event, 'train_loss')}"
            data = {"step": event.step, "total_steps": total, **_json(event.metrics)}
            yield Told(message, type="metrics", data=data)
        case EvalDone():
            message = f"Step {event.step}: valid_loss={_short(event, 'valid_loss')}"
            yield Told(message, type="metrics", data={"step": event.step, **_json(event.metrics)})
        case Warned():
            yield Told(event.message, level="warn", data={"code": event.code})


def _short(event: StepDone | EvalDone, name: str) -> str:
    return f"{event.metrics.get(name, float('nan')):.4f}"


def _json(metrics: dict[str, float]) -> dict[str, Any]:
    """JSONB has no NaN: values that are not finite become their names."""
    return {
        name: value if abs(value) < float("inf") else str(value) for name, value in metrics.items()
    }


def _when(event: Event) -> datetime:
    return datetime.fromtimestamp(event.at, tz=UTC)
