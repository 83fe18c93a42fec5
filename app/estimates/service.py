"""A job that is not submitted: what it would come to, take and wait for."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database
from app.errors import ModelNotFound, QuotaExceeded
from app.estimates import costs, history, shapes
from app.estimates.estimate import Estimate, Surroundings
from app.estimates.history import Ended
from app.estimates.rows import unsaid
from app.estimates.schemas import EstimateOut
from app.estimates.shapes import Shape
from app.files import reports
from app.jobs import queue
from app.jobs import service as jobs
from app.jobs.queue import Newcomer
from app.jobs.schemas import CreateJob
from app.jobs.service import Resolved
from app.jobs.spec import TrainSpec
from app.models import catalog
from app.organizations import quotas
from app.settings import ApiSettings
from app.tables import Json
from app.workers import service as workers


async def estimate(
    db: Database, organization_id: str, body: CreateJob, *, settings: ApiSettings
) -> EstimateOut:
    """Say what a job would take, without making it.

    Raises:
        ModelNotFound, NotFound, InvalidRequest: what a submission would raise.
    """
    async with db.transaction() as tx:
        asked = await jobs.resolve(tx, organization_id, body, settings=settings)
        refusal = await _quota(tx, organization_id)
    train = await _tokens(db, organization_id, asked, body.training_file)
    valid = None
    if body.validation_file:
        valid = await _tokens(db, organization_id, asked, body.validation_file)
    async with db.transaction() as tx:
        newcomer = Newcomer(organization_id, body.priority, asked.spec.resources.gpus)
        around = await _surroundings(tx, newcomer, settings)
    shape = shapes.read(asked.base) or _known_shape(asked.spec, around.ended)
    found = Estimate(asked.spec, shape, asked.base.context_length, train, valid, around)
    return found.shown(body, [refusal] if refusal else [])


async def _quota(tx: AsyncSession, organization_id: str) -> str | None:
    """Return why a submission would be refused at the moment, if it would."""
    try:
        await quotas.check_submit(tx, organization_id)
    except QuotaExceeded as error:
        return f"A submission would be refused now: {error.message}"
    return None


async def _tokens(db: Database, organization_id: str, asked: Resolved, file_id: str) -> Json:
    report = await reports.get(db, organization_id, file_id, base=asked.base, validation_file=None)
    tokens: Json | None = report["tokens"]
    return unsaid(report["rows"]) if tokens is None else tokens


async def _surroundings(
    tx: AsyncSession, newcomer: Newcomer, settings: ApiSettings
) -> Surroundings:
    ended = await history.ended(tx)

    def shape_of(name: str) -> Shape | None:
        if name not in known:
            known[name] = _offered_shape(name, settings)
        return known[name]

    known: dict[str, Shape | None] = {}
    timings = await history.timings(tx, ended)
    counted = await history.token_reports(tx, ended)
    return Surroundings(
        nodes=await workers.alive(tx),
        place=await queue.place_of(tx, newcomer),
        durations_s=await history.durations_s(tx),
        ended=ended,
        finished=costs.measured(ended, timings, counted, shape_of),
    )


def _offered_shape(name: str, settings: ApiSettings) -> Shape | None:
    try:
        base = catalog.find(name, settings.models_dir, settings.hub_revisions, settings.hub_tasks)
    except ModelNotFound:  # it was taken away since
        return None
    return shapes.read(base)


def _known_shape(spec: TrainSpec, ended: Sequence[Ended]) -> Shape | None:
    """Return the shape of a hub model from a run that loaded it."""
    runs = [job for job in ended if job.spec.base_model == spec.base_model]
    return costs.guessed_of(runs[0]) if runs else None
