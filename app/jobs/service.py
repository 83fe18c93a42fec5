"""Jobs as their owner sees them: submit, look, cancel."""

import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVarTuple

import structlog
from sqlalchemy import Row, Select, bindparam, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app import audit, blobs, tracing
from app.blobs import StoredBytes
from app.broker import Bell
from app.db import Database, after_commit, planned_anew
from app.errors import InvalidJobState, InvalidRequest, NotFound, NotReady
from app.files import service as files
from app.ids import new_id
from app.integrations import forwards
from app.integrations import service as integrations
from app.jobs import defaults, events, lease, rollouts, sources, submissions, waits
from app.jobs.buckets import buckets
from app.jobs.compatible import check_asked, check_formats
from app.jobs.defaults import Facts
from app.jobs.events import EventType
from app.jobs.rollouts import Group
from app.jobs.schemas import CreateJob, QueueOut, Series, number_out
from app.jobs.shown import VERSION, Showing, ShownJob
from app.jobs.spec import DataSpec, PeftSpec, TrainSpec
from app.jobs.states import TERMINAL, JobStatus
from app.jobs.submissions import Request
from app.models import catalog
from app.models.catalog import BaseModel
from app.organizations import quotas
from app.paging import Page, cut
from app.permissions.service import readable_by
from app.settings import ApiSettings
from app.tables import Attempt, Checkpoint, File, Job, JobEvent, LogChunk, Metric, Rollout

log = structlog.get_logger()

RAW, MINMAX = ("name", "step", "value"), ("name", "first", "low", "high", "mean")
MAX_RAW_VALUES = 200_000  # of an answer with every value of a metric
LOG_CHUNKS_A_PAGE = 100
# Asked at each look at a job, hence made once.
_OWN_JOB = select(Job).where(
    Job.id == bindparam("job_id"), Job.organization_id == bindparam("organization_id")
)
_OWN_SHOWN = _OWN_JOB.add_columns(VERSION)
Columns = TypeVarTuple("Columns")


@dataclass(frozen=True)
class Resolved:
    """What a request for a job comes to: its spec, the base and the files that it names.

    `targets` are who else is told of its metrics.
    """

    spec: TrainSpec
    base: BaseModel
    train: File
    valid: File | None
    targets: list[integrations.Target]


async def submit(
    tx: AsyncSession, request: Request, body: CreateJob, *, settings: ApiSettings, bell: Bell
) -> Job:
    """Queue a job, or return the one that this very request has queued before.

    Raises:
        IdempotencyKeyReused: its key stands for another body. And what `create` raises.
    """
    earlier = await submissions.made_before(tx, request)
    if earlier is not None:
        return await get(tx, request.by.organization_id, earlier)
    job = await create(tx, request.by.organization_id, body, settings=settings, bell=bell)
    await submissions.remember(tx, request, job.id)
    audit.record(tx, request.by, "job.created", job.id, {"model": job.model})
    return job


async def create(
    tx: AsyncSession, organization_id: str, body: CreateJob, *, settings: ApiSettings, bell: Bell
) -> Job:
    """Queue a job: every "auto" is resolved now, the workers hear of it after the commit.

    Raises:
        ModelNotFound, NotFound: the model or a file is not there.
        InvalidRequest: a file that is not training data, or values that contradict each other.
        QuotaExceeded: the organization has used up what it may.
    """
    asked = await resolve(tx, organization_id, body, settings=settings)
    await quotas.check_submit(tx, organization_id)
    job_id = asked.spec.job_id
    job = _row(organization_id, body, asked.spec)
    tx.add(job)
    await tx.flush()
    forwards.begin(tx, job, asked.targets)
    events.add(tx, job_id, "Created fine-tuning job")
    await tx.flush()
    _tell_lint(tx, job_id, asked.train, of="training file")
    if asked.valid is not None:
        _tell_lint(tx, job_id, asked.valid, of="validation file")
    await tx.flush()
    after_commit(tx, partial(bell.wake, job_id))
    after_commit(tx, partial(log.info, "job.submitted", job_id=job_id))
    return job


async def resolve(
    tx: AsyncSession, organization_id: str, body: CreateJob, *, settings: ApiSettings
) -> Resolved:
    """Decide all that a request for a job leaves open, and leave nothing behind.

    Raises:
        ModelNotFound, NotFound: the model or a file is not there.
        InvalidRequest: a file that is not training data, or values that contradict each other.
    """
    check_asked(body)
    base = catalog.find(body.model, settings.models_dir, settings.hub_revisions, settings.hub_tasks)
    train = await _training_file(tx, organization_id, body.training_file, param="training_file")
    valid = None
    if body.validation_file:
        valid = await _training_file(
            tx, organization_id, body.validation_file, param="validation_file"
        )
    check_formats(base, body, train.row_format, valid.row_format if valid else None)
    facts = Facts(
        job_id=new_id("ftjob-"),
        context_length=base.context_length,
        task=base.task,
        data=_data(train, valid),
        source=await _source(tx, organization_id, body),
    )
    targets = await integrations.targets(tx, organization_id, body, settings.mlflow_tracking_uri)
    seed = secrets.randbelow(2**31) if body.seed is None else body.seed
    return Resolved(defaults.resolve(body, facts, seed=seed), base, train, valid, targets)


async def get(tx: AsyncSession, organization_id: str, job_id: str, *, hold: bool = False) -> Job:
    """Return a job of the caller's; with `hold`, nobody changes it before this transaction ends.

    Raises:
        NotFound: no such job, or another tenant's.
    """
    # With `hold`, a run that ends just now has ended, or does so afterwards.
    query = _OWN_JOB.with_for_update(key_share=True) if hold else _OWN_JOB
    (job,) = await _own_row(tx, query, organization_id, job_id)
    return job


async def _own_row(
    tx: AsyncSession, query: Select[*Columns], organization_id: str, job_id: str
) -> Row[*Columns]:
    own = {"job_id": job_id, "organization_id": organization_id}
    row = (await tx.execute(query, own)).one_or_none()
    if row is None:
        raise _unknown(job_id)
    return row


def _unknown(job_id: str) -> NotFound:
    return NotFound(f"Could not find fine-tuning job: {job_id}.", param="fine_tuning_job_id")


async def _readable(tx: AsyncSession, organization_id: str, job_id: str) -> Job:
    """Return a job of the caller's, or one whose model is shared with it."""
    shared = readable_by(organization_id, Job.fine_tuned_model)
    job = (await tx.scalars(select(Job).where(Job.id == job_id, shared))).one_or_none()
    return job or await get(tx, organization_id, job_id)


async def queue_place(tx: AsyncSession, job: Job) -> QueueOut | None:
    """Return where a queued job stands among all that wait."""
    return await waits.see(tx, job)


async def show(db: Database, organization_id: str, job_id: str, *, showing: Showing) -> ShownJob:
    """Return one of the caller's jobs as it is on the wire.

    Raises:
        NotFound: no such job, or another tenant's.
    """
    look = await showing.looks.one(organization_id, job_id)
    if look is None:
        raise _unknown(job_id)
    if found := showing.kept.find([look]):
        return found[0]
    async with db.reading() as tx:
        job, version = await _own_row(tx, _OWN_SHOWN, organization_id, job_id)
    return showing.kept.show(job, version)


async def list_jobs(
    db: Database,
    organization_id: str,
    *,
    status: JobStatus | None = None,
    metadata: dict[str, str],
    after: str | None,
    limit: int,
    showing: Showing,
) -> Page[ShownJob]:
    """Return a page of the caller's jobs of a status that carry all of `metadata`, newest first.

    Raises:
        NotFound: the caller has no job `after`.
    """
    asked: dict[str, Any] = {
        "organization_id": organization_id,
        "status": status,
        "metadata": metadata,
        "rows": limit + 1,
    }
    if after:
        async with db.reading() as tx:
            last = await get(tx, organization_id, after)
        asked |= {"last_created_at": last.created_at, "last_id": last.id}
    page = _own_jobs(of_status=status is not None, tagged=bool(metadata), after=bool(after))
    async with db.looking() as connection, _planned_for(connection, metadata):
        looks = await connection.execute(page.looks, asked)
    found = showing.kept.find(looks.all())
    if found is None:
        async with db.reading() as tx, _planned_for(tx, metadata):
            rows = await tx.execute(page.jobs, asked)
        found = [showing.kept.show(job, version) for job, version in rows]
    return cut(found, limit)


@dataclass(frozen=True)
class _ListQuery:
    """What selects a page of jobs: to see whether they are kept as they are, and whole."""

    looks: Select[Any]
    jobs: Select[Any]


@cache  # composing it would cost as much as asking it
def _own_jobs(*, of_status: bool, tagged: bool, after: bool) -> _ListQuery:
    page = select().where(Job.organization_id == bindparam("organization_id"))
    if of_status:
        page = page.where(Job.status == bindparam("status"))
    if tagged:
        page = page.where(Job.user_metadata.contains(bindparam("metadata", type_=JSONB)))
    if after:
        last = tuple_(bindparam("last_created_at"), bindparam("last_id"))
        page = page.where(tuple_(Job.created_at, Job.id) < last)
    page = page.order_by(Job.created_at.desc(), Job.id.desc()).limit(bindparam("rows"))
    return _ListQuery(page.add_columns(Job.id, VERSION), page.add_columns(Job, VERSION))


def _planned_for(
    tx: AsyncSession | AsyncConnection, metadata: dict[str, str]
) -> AbstractAsyncContextManager[None]:
    """Few jobs with a tag are found by its index, many by the list itself."""
    return planned_anew(tx) if metadata else nullcontext()


async def cancel(tx: AsyncSession, organization_id: str, job_id: str) -> Job:
    """Stop a job: now if it waits, within seconds if it runs. Cancelling twice is no error.

    Raises:
        InvalidJobState: it has succeeded or failed already.
    """
    job = await get(tx, organization_id, job_id, hold=True)
    told = "while it was paused" if job.status == JobStatus.PAUSED else "before it started"
    waits = Job.status.in_((JobStatus.QUEUED, JobStatus.PAUSED))
    if await _move(tx, job_id, waits, status=JobStatus.CANCELLED, finished_at=func.now()):
        events.add(tx, job_id, f"The job was cancelled {told}")
        await lease.conclude(tx, organization_id, job_id, JobStatus.CANCELLED)
    else:
        await _move(tx, job_id, Job.status == JobStatus.RUNNING, stop_requested="cancel")
    await tx.flush()
    await tx.refresh(job)
    _refuse_ended(job, but=JobStatus.CANCELLED, verb="cancelled")
    return job


async def pause(tx: AsyncSession, organization_id: str, job_id: str) -> Job:
    """Hold a job: now if it waits, after its current step and a checkpoint if it runs.

    Raises:
        InvalidJobState: it is over, or being cancelled.
    """
    job = await get(tx, organization_id, job_id, hold=True)
    if await _move(tx, job_id, Job.status == JobStatus.QUEUED, status=JobStatus.PAUSED):
        events.add(tx, job_id, "The job was paused")
    else:
        running = (Job.status == JobStatus.RUNNING) & Job.stop_requested.is_(None)
        await _move(tx, job_id, running, stop_requested="pause")
    await tx.flush()
    await tx.refresh(job)
    _refuse_ended(job, verb="paused")
    if job.stop_requested == "cancel":
        raise InvalidJobState(f"{job_id} is being cancelled; it cannot be paused.")
    return job


async def resume(tx: AsyncSession, organization_id: str, job_id: str, *, bell: Bell) -> Job:
    """Let a paused job wait for a worker again; it goes on from its last checkpoint.

    Raises:
        InvalidJobState: it is over.
        QuotaExceeded: the organization has used up what it may.
    """
    job = await get(tx, organization_id, job_id, hold=True)
    if job.status == JobStatus.PAUSED:
        await quotas.check_submit(tx, organization_id)
    waiting = {"status": JobStatus.QUEUED, "queued_at": func.now()}
    if await _move(tx, job_id, Job.status == JobStatus.PAUSED, **waiting):
        events.add(tx, job_id, "The job waits again")
        after_commit(tx, partial(bell.wake, job_id))
    else:
        pausing = (Job.status == JobStatus.RUNNING) & (Job.stop_requested == "pause")
        await _move(tx, job_id, pausing, stop_requested=None)
    await tx.flush()
    await tx.refresh(job)
    _refuse_ended(job, verb="resumed")
    return job


async def _move(tx: AsyncSession, job_id: str, when: Any, **values: Any) -> bool:
    """Change a job where it is in a state that allows it; say whether it was."""
    moved = await tx.execute(
        update(Job).where(Job.id == job_id, when).values(**values).returning(Job.id)
    )
    return moved.first() is not None


def _refuse_ended(job: Job, *, verb: str, but: JobStatus | None = None) -> None:
    if job.status in TERMINAL - {but}:
        raise InvalidJobState(f"{job.id} has already {job.status}; only a live job can be {verb}.")


async def list_events(
    db: Database,
    organization_id: str,
    job_id: str,
    *,
    kind: EventType | None,
    after: str | None,
    limit: int,
) -> Page[Row[Any]]:
    """Return a page of a job's events, newest first; with `kind`, of that type alone.

    Raises:
        NotFound: no such job, or another tenant's.
    """
    query = _own_events(of_kind=kind is not None, after=bool(after))
    asked = {"job_id": job_id, "organization_id": organization_id, "rows": limit + 1}
    async with db.looking() as connection:
        found = await connection.execute(query, asked | {"kind": kind, "after": after})
    rows = list(found)
    if not rows:
        async with db.reading() as tx:
            await get(tx, organization_id, job_id)
    return cut(rows, limit)


@cache
def _own_events(*, of_kind: bool, after: bool) -> Select[Any]:
    event = JobEvent
    columns = (event.id, event.created_at, event.level, event.message, event.type, event.data)
    own = event.job_id == bindparam("job_id"), _OWN_JOB.exists()
    query = select().add_columns(*columns).where(*own)
    if of_kind:
        query = query.where(event.type == bindparam("kind"))
    if after:
        last = select(event.seq).where(
            event.id == bindparam("after"), event.job_id == bindparam("job_id")
        )
        query = query.where(event.seq < last.scalar_subquery())
    return query.order_by(event.seq.desc()).limit(bindparam("rows"))


async def list_checkpoints(
    tx: AsyncSession, organization_id: str, job_id: str, *, after: str | None, limit: int
) -> Page[Checkpoint]:
    """Return a page of a job's checkpoints, latest step first."""
    await get(tx, organization_id, job_id)
    query = select(Checkpoint).where(Checkpoint.job_id == job_id)
    if after:
        step = select(Checkpoint.step).where(Checkpoint.id == after, Checkpoint.job_id == job_id)
        query = query.where(Checkpoint.step < step.scalar_subquery())
    rows = await tx.scalars(query.order_by(Checkpoint.step.desc()).limit(limit + 1))
    return cut(list(rows), limit)


async def list_rollouts(
    tx: AsyncSession,
    organization_id: str,
    job_id: str,
    *,
    step: int | None,
    after: str | None,
    limit: int,
) -> tuple[Page[Rollout], list[Group]]:
    """Return a page of a job's rollouts, newest step first, and what each step came to.

    With `step`, the page has those of that step alone.
    """
    await get(tx, organization_id, job_id)
    found = await rollouts.page(tx, job_id, step=step, after=after, limit=limit)
    return found, await rollouts.groups(tx, job_id)


async def list_attempts(tx: AsyncSession, organization_id: str, job_id: str) -> list[Attempt]:
    """Return every try at a job, the first one first."""
    await get(tx, organization_id, job_id)
    query = select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)
    return list(await tx.scalars(query))


async def adapter(tx: AsyncSession, organization_id: str, job_id: str) -> StoredBytes:
    """Return where the adapter's archive is: of an own job, or of a model that is shared.

    Raises:
        NotFound: no such job, nor a shared model of it; or the model was deleted.
        NotReady: the job has none; it runs still, or it did not succeed.
    """
    job = await _readable(tx, organization_id, job_id)
    if job.model_deleted_at is not None:
        raise NotFound(f"{job.fine_tuned_model} was deleted.", param="fine_tuning_job_id")
    if job.adapter_blob_id is None:
        raise NotReady(f"{job_id} has no adapter: its status is {job.status}.")
    return await blobs.describe(tx, job.adapter_blob_id)


async def checkpoint_adapter(
    tx: AsyncSession, organization_id: str, job_id: str, checkpoint_id: str
) -> StoredBytes:
    """Return where the archive of a checkpoint's adapter is: an own one, or one that is shared.

    Raises:
        NotFound: the job has no such checkpoint.
    """
    query = (
        select(Checkpoint.blob_id)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(
            Checkpoint.id == checkpoint_id,
            Job.id == job_id,
            readable_by(organization_id, Checkpoint.model),
        )
    )
    blob_id = (await tx.execute(query)).scalar_one_or_none()
    if blob_id is None:
        raise NotFound(f"{job_id} has no checkpoint {checkpoint_id}.")
    return await blobs.describe(tx, blob_id)


async def log_pages(db: Database, job_id: str) -> AsyncIterator[str]:
    """Yield what the job's runs printed so far, a few pieces at a time."""
    after = 0
    while True:
        query = (
            select(LogChunk.seq, LogChunk.text)
            .where(LogChunk.job_id == job_id, LogChunk.seq > after)
            .order_by(LogChunk.seq)
            .limit(LOG_CHUNKS_A_PAGE)
        )
        async with db.transaction() as tx:
            rows = (await tx.execute(query)).all()
        if not rows:
            return
        yield "".join(row.text for row in rows)
        after = rows[-1].seq


async def metrics(
    tx: AsyncSession, organization_id: str, job_id: str, *, names: list[str], points: int | None
) -> list[Series]:
    """Return a job's metrics: every value, or min, max and mean of `points` buckets each.

    Buckets are made in SQL and keep spikes; PostgreSQL sorts NaN above all, so a bucket's max
    shows it.

    Raises:
        InvalidRequest: there are too many values for an answer with every one.
    """
    await get(tx, organization_id, job_id)
    of_job = [Metric.job_id == job_id]
    if names:
        of_job.append(Metric.name.in_(names))
    if points is None:
        await _require_few(tx, of_job)
        query = (
            select(Metric.name, Metric.step, Metric.value)
            .where(*of_job)
            .order_by(Metric.name, Metric.step)
        )
    else:
        query = buckets(of_job, points)
    rows = (await tx.execute(query)).columns(*(RAW if points is None else MINMAX))
    found: dict[str, list[list[float | str]]] = {name: [] for name in names}
    for name, step, *values in rows:
        found.setdefault(name, []).append([step, *map(number_out, values)])
    agg = "raw" if points is None else "minmax"
    return [Series(name=name, agg=agg, points=series) for name, series in sorted(found.items())]


async def _require_few(tx: AsyncSession, of_job: list[Any]) -> None:
    some = select(Metric.step).where(*of_job).limit(MAX_RAW_VALUES + 1).subquery()
    if (await tx.scalar(select(func.count()).select_from(some)) or 0) > MAX_RAW_VALUES:
        raise InvalidRequest(
            f"The job has more than {MAX_RAW_VALUES} values: use agg=minmax, or ask for fewer"
            " names.",
            param="agg",
        )


async def _source(tx: AsyncSession, organization_id: str, body: CreateJob) -> PeftSpec | None:
    if body.peft.source is None:
        return None
    source = await sources.find(tx, organization_id, body.peft.source)
    if source.base_model != body.model:
        message = f"{body.peft.source} was trained on {source.base_model}, not on {body.model}."
        raise InvalidRequest(message, param="peft.from")
    return source.peft


async def _training_file(
    tx: AsyncSession, organization_id: str, file_id: str, *, param: str
) -> File:
    file = await files.get(tx, organization_id, file_id, param=param, hold=True)
    if file.rows is None:
        message = (
            f"{file_id} was uploaded for {file.purpose!r}; upload it as {files.TRAINING_PURPOSE!r}."
        )
        raise InvalidRequest(message, param=param)
    return file


def _tell_lint(tx: AsyncSession, job_id: str, file: File, *, of: str) -> None:
    """Say what was doubtful in a file when it was uploaded."""
    for found in (file.lint or {}).get("findings", ()):
        if found["severity"] == "warn":
            data = {"code": found["code"], "file": file.id, "lines": found["lines"]}
            message = f"The {of}, {found['count']} times: {found['message']}"
            events.add(tx, job_id, message, level="warn", data=data)


def _data(train: File, valid: File | None) -> DataSpec:
    assert train.rows is not None
    return DataSpec(
        train_sha256=train.sha256,
        train_rows=train.rows,
        valid_sha256=valid.sha256 if valid else None,
        valid_rows=(valid.rows or 0) if valid else 0,
    )


def _row(organization_id: str, body: CreateJob, spec: TrainSpec) -> Job:
    return Job(
        id=spec.job_id,
        organization_id=organization_id,
        status=JobStatus.QUEUED,
        priority=body.priority,
        model=body.model,
        training_file_id=body.training_file,
        validation_file_id=body.validation_file,
        suffix=body.suffix,
        method=defaults.shown_method(spec),
        hyperparameters=defaults.shown_hyperparameters(spec),
        user_metadata=body.metadata,
        integrations=[each.model_dump(mode="json") for each in body.integrations or ()] or None,
        spec=spec.model_dump(mode="json"),
        total_steps=spec.total_steps,
        traceparent=tracing.here(),
    )
