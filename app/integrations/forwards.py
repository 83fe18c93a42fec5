"""What is still to be sent elsewhere of each job's metrics: read from its own rows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import from_now
from app.integrations.service import WANDB, Target
from app.jobs import events
from app.jobs.states import TERMINAL
from app.tables import Forward, IntegrationKey, Job, Json, Metric, Organization

HELD_S = 240  # by who sends; longer than that may take
EVERY_S = 30  # while a job runs
LONGEST_WAIT_S = 3600
TRIED_FOR_S = 24 * 3600  # after a job's end
MOST_ROWS = 20_000  # at once
NAMES = {"wandb": "Weights & Biases", "mlflow": "MLflow"}

Step = tuple[int, dict[str, float]]


@dataclass(frozen=True)
class Due:
    """What to send of a job now, by whoever claimed this attempt; `key` is sealed.

    `status` is set when this is the last of it.
    """

    job_id: str
    organization: str
    organization_id: str
    target: str
    attempt: int
    run: Json
    config: Json
    steps: list[Step]
    status: str | None
    key: bytes | None


def begin(tx: AsyncSession, job: Job, targets: Sequence[Target]) -> None:
    """Note where the metrics of a new job are to be sent."""
    for target in targets:
        tx.add(Forward(job_id=job.id, target=target, organization_id=job.organization_id))


async def claim(tx: AsyncSession, *, passing_over: Collection[str] = ()) -> Due | None:
    """Take what is due the longest; two processes never take the same.

    `passing_over` are organizations that have enough under way.
    """
    due = (
        select(Forward.job_id, Forward.target)
        .join(Job, Job.id == Forward.job_id)
        .where(
            Forward.state == "pending",
            Forward.next_at <= func.now(),
            Forward.organization_id.not_in(passing_over),
            or_(Job.step > Forward.step + 1, Job.status.in_(TERMINAL)),
        )
        .order_by(Forward.next_at)
        .limit(1)
        .with_for_update(skip_locked=True, of=Forward)
    )
    found = (await tx.execute(due)).first()
    if found is None:
        return None
    taken = await tx.execute(
        update(Forward)
        .where(Forward.job_id == found.job_id, Forward.target == found.target)
        .values(attempt=Forward.attempt + 1, next_at=from_now(seconds=HELD_S))
        .returning(Forward)
    )
    return await _due(tx, taken.scalar_one())


async def settle(tx: AsyncSession, due: Due, *, url: str | None, error: str | None) -> None:
    """Write down how far it came; a failure becomes a line of the job's story, and no more."""
    forward = await tx.scalar(
        select(Forward)
        .where(
            Forward.job_id == due.job_id,
            Forward.target == due.target,
            Forward.attempt == due.attempt,
        )
        .with_for_update()
    )
    if forward is None:
        return
    if error is not None:
        await _failed(tx, forward, error)
        return
    forward.failures = 0
    forward.next_at = from_now(
        seconds=0 if due.status is None and len(due.steps) > 1000 else EVERY_S
    )
    forward.step = due.steps[-1][0] if due.steps else forward.step
    if due.status is not None:
        forward.state = "done"
    if url is not None and forward.url is None:
        forward.url = url
        events.add(tx, due.job_id, f"Metrics are sent to {NAMES[due.target]}", data={"url": url})
    await tx.flush()


async def _failed(tx: AsyncSession, forward: Forward, error: str) -> None:
    """Try again later, until a day after the job's end; say so once, not each time."""
    forward.failures += 1
    wait_s = min(EVERY_S * 2 ** min(forward.failures, 10), LONGEST_WAIT_S)
    forward.next_at = from_now(seconds=wait_s)
    long_over = Job.finished_at < from_now(seconds=-TRIED_FOR_S)
    over = await tx.scalar(select(Job.id).where(Job.id == forward.job_id, long_over))
    name = NAMES[forward.target]
    data = {"target": forward.target}
    if over is not None:
        forward.state = "given_up"
        message = f"Metrics could not be sent to {name}, for a day; they stay here. {error}"
        events.add(tx, forward.job_id, message, level="warn", data=data)
    elif forward.failures == 1:
        message = f"Metrics could not be sent to {name}; it is tried again. {error}"
        events.add(tx, forward.job_id, message, level="warn", data=data)
    await tx.flush()


async def _due(tx: AsyncSession, forward: Forward) -> Due:
    job = await tx.get_one(Job, forward.job_id)
    ended = job.status in TERMINAL
    steps, more = await _steps(tx, job, after=forward.step, ended=ended)
    asked = {each["type"]: each[each["type"]] for each in job.integrations or ()}
    key = select(IntegrationKey.secret).where(
        IntegrationKey.organization_id == job.organization_id, IntegrationKey.type == WANDB
    )
    organization = await tx.get_one(Organization, job.organization_id)
    return Due(
        job_id=job.id,
        organization=organization.name,
        organization_id=job.organization_id,
        target=forward.target,
        attempt=forward.attempt,
        run=asked.get(forward.target, {}),
        config=_config(job),
        steps=steps,
        status=str(job.status) if ended and not more else None,
        key=(await tx.execute(key)).scalar() if forward.target == WANDB else None,
    )


async def _steps(tx: AsyncSession, job: Job, *, after: int, ended: bool) -> tuple[list[Step], bool]:
    """Return metrics by step, and whether there are more.

    While a job runs, its last step may still get values: an evaluation comes after the step.
    """
    query = select(Metric.step, Metric.name, Metric.value).where(
        Metric.job_id == job.id, Metric.step > after
    )
    if not ended:
        query = query.where(Metric.step < job.step)
    query = query.order_by(Metric.step, Metric.name).limit(MOST_ROWS)
    rows = [(row.step, row.name, row.value) for row in await tx.execute(query)]
    more = len(rows) == MOST_ROWS
    steps: list[Step] = [
        (step, {name: value for _, name, value in of_step})
        for step, of_step in groupby(rows, key=lambda row: row[0])
    ]
    return steps[:-1] if more else steps, more


def _config(job: Job) -> Json:
    """Return what a run is described by elsewhere."""
    spec = job.spec
    return {
        "job_id": job.id,
        "model": job.model,
        "training_file": job.training_file_id,
        "validation_file": job.validation_file_id,
        "seed": spec.get("seed"),
        **{part: spec[part] for part in ("training", "peft", "perturbation") if part in spec},
    }
