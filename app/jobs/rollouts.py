"""The rollouts that a run by reinforcement shows: kept of some steps, and read page by page."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, bindparam, delete, func, or_, select, text
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession

from app.ids import new_id
from app.jobs.spec import RolloutSampled
from app.paging import Page, cut
from app.tables import Rollout

NEWEST_STEPS = 50  # all of these are kept
OLDER_STEPS = 50  # and at most so many before them, spread over the run
# All in one parameter, as metrics are stored. What a later attempt says of a step takes its place.
_STORE = text(
    """
    INSERT INTO rollouts AS kept
      (id, job_id, attempt, step, index, reward, success, failure, turns, sampled_at)
    SELECT told->>'id', :job_id, :attempt, (told->>'step')::bigint, (told->>'index')::bigint,
      (told->>'reward')::double precision, (told->>'success')::boolean, told->>'failure',
      told->'turns', to_timestamp((told->>'at')::double precision)
    FROM jsonb_array_elements(:told) AS told
    ON CONFLICT (job_id, step, index) DO UPDATE
    SET attempt = excluded.attempt, reward = excluded.reward, success = excluded.success,
      failure = excluded.failure, turns = excluded.turns, sampled_at = excluded.sampled_at
    WHERE kept.attempt < excluded.attempt
    """
).bindparams(bindparam("attempt", type_=BigInteger), bindparam("told", type_=JSONB))


@dataclass(frozen=True)
class Group:
    """The rewards of the rollouts that are kept of a step, by their places in the group."""

    step: int
    rewards: list[float]


async def store(
    tx: AsyncSession, job_id: str, attempt: int, said: Sequence[RolloutSampled]
) -> None:
    """Keep rollouts; of the steps before them some are forgotten. The caller holds the job."""
    rows = {(event.step, event.index): _row(event) for event in said}
    if not rows:
        return
    values = {"job_id": job_id, "attempt": attempt, "told": list(rows.values())}
    await tx.execute(_STORE, values)
    own = Rollout.job_id == job_id
    steps = set(await tx.scalars(select(Rollout.step).where(own).distinct()))
    if forgotten := steps - kept(steps):
        await tx.execute(delete(Rollout).where(own, Rollout.step.in_(forgotten)))


def kept(steps: Iterable[int]) -> set[int]:
    """Return which of the steps are kept: the newest, and the first of each stretch before them.

    The stretches are as long as the smallest power of two that leaves few enough of them, so that
    what was kept once the stretches were shorter is enough for longer ones.
    """
    ordered = sorted(steps)
    older, newest = ordered[:-NEWEST_STEPS], ordered[-NEWEST_STEPS:]
    length = 1
    while len(firsts := _first_of_each(older, length)) > OLDER_STEPS:
        length *= 2
    return {*firsts, *newest}


async def page(
    tx: AsyncSession, job_id: str, *, step: int | None, after: str | None, limit: int
) -> Page[Rollout]:
    """Return rollouts of a job, the newest step first and in it by their places."""
    query = select(Rollout).where(Rollout.job_id == job_id)
    if step is not None:
        query = query.where(Rollout.step == step)
    if after:
        place = select(Rollout.step, Rollout.index)
        last = place.where(Rollout.id == after, Rollout.job_id == job_id).subquery()
        later = (Rollout.step == last.c.step) & (Rollout.index > last.c.index)
        query = query.join(last, or_(Rollout.step < last.c.step, later))
    query = query.order_by(Rollout.step.desc(), Rollout.index).limit(limit + 1)
    return cut(list(await tx.scalars(query)), limit)


async def groups(tx: AsyncSession, job_id: str) -> list[Group]:
    """Return what every step that is kept of a job came to, the newest first."""
    rewards = func.array_agg(aggregate_order_by(Rollout.reward, Rollout.index))
    query = select(Rollout.step, rewards.label("rewards")).where(Rollout.job_id == job_id)
    query = query.group_by(Rollout.step).order_by(Rollout.step.desc())
    return [Group(row.step, list(row.rewards)) for row in await tx.execute(query)]


def _first_of_each(steps: Iterable[int], length: int) -> set[int]:
    firsts: dict[int, int] = {}
    for step in steps:
        firsts.setdefault(step // length, step)
    return set(firsts.values())


def _row(event: RolloutSampled) -> dict[str, Any]:
    """Return what is stored of a rollout, as JSON."""
    # By way of JSON, in which numbers that are not finite are their names.
    told: dict[str, Any] = json.loads(event.model_dump_json(exclude={"type"}))
    return {"id": new_id("ftrollout-"), **_storable(told)}


def _storable(value: Any) -> Any:
    """Return a value without NUL characters, which PostgreSQL keeps in no text."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_storable(each) for each in value]
    if isinstance(value, dict):
        return {key: _storable(each) for key, each in value.items()}
    return value
