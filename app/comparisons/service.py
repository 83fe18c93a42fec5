"""Comparisons: made of jobs, read as one."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app import audit
from app.broker import Bell
from app.comparisons import plan, runs
from app.comparisons.asked import CreateComparison
from app.comparisons.passes import steps_for
from app.comparisons.results import Result, results
from app.comparisons.runs import CurvePoint, Run
from app.errors import ApiError, InvalidJobState, InvalidRequest, NotFound
from app.ids import new_id
from app.jobs import service as jobs
from app.jobs import submissions
from app.jobs.states import TERMINAL, JobStatus
from app.jobs.submissions import Request
from app.keys.service import Caller
from app.paging import Page, cut
from app.settings import ApiSettings
from app.tables import Comparison, ComparisonJob, Job


@dataclass(frozen=True)
class Listing:
    """A comparison, and its runs by method and status: how many there are."""

    row: Comparison
    counted: Counter[tuple[int, JobStatus]]

    @property
    def method_names(self) -> list[str]:
        """Return what the methods are called, by their place."""
        return [method["name"] for method in self.row.body["methods"]]

    @property
    def status(self) -> Literal["running", "succeeded", "failed", "cancelled"]:
        """Return running until every run is over; failed where a method has come to nothing."""
        if self.finished < self.jobs:
            return "running"
        if any(status == JobStatus.CANCELLED for _, status in self.counted):
            return "cancelled"
        done = {method for method, status in self.counted if status == JobStatus.SUCCEEDED}
        return "succeeded" if len(done) == len(self.method_names) else "failed"

    @property
    def jobs(self) -> int:
        return self.counted.total()

    @property
    def finished(self) -> int:
        return sum(jobs for (_, status), jobs in self.counted.items() if status in TERMINAL)


@dataclass(frozen=True)
class Found:
    """A comparison with its runs, what they say, and the curves of its methods."""

    listing: Listing
    runs: list[Run]
    results: list[Result]
    curves: dict[int, list[CurvePoint]]


async def submit(
    tx: AsyncSession, request: Request, body: CreateComparison, *, settings: ApiSettings, bell: Bell
) -> str:
    """Queue every run of a comparison or none, and return its id; sent again, that of the first.

    Raises:
        InvalidRequest: a method or the whole makes no sense; the parameter is named.
        QuotaExceeded: the organization may not have so many jobs wait. And what a job raises.
    """
    earlier = await submissions.made_before(tx, request)
    if earlier is not None:
        made = select(ComparisonJob.comparison_id).where(ComparisonJob.job_id == earlier)
        return (await tx.scalars(made)).one()
    plan.check(body)
    organization_id = request.by.organization_id
    lengths = await _lengths(tx, organization_id, body, settings=settings)
    row = Comparison(
        id=new_id("cmp-"),
        organization_id=organization_id,
        name=body.name,
        body=body.model_dump(mode="json", by_alias=True),
    )
    tx.add(row)
    await tx.flush()
    made_jobs = await _make_jobs(tx, row, body, lengths, settings=settings, bell=bell)
    await submissions.remember(tx, request, made_jobs[0])
    audit.record(tx, request.by, "comparison.created", row.id, {"jobs": len(made_jobs)})
    return row.id


async def find(tx: AsyncSession, organization_id: str, comparison_id: str) -> Found:
    """Return a comparison of the caller's, and all that is known of it.

    Raises:
        NotFound: no such comparison, or another tenant's.
    """
    row = await _get(tx, organization_id, comparison_id)
    found = await runs.of_comparison(tx, comparison_id)
    listing = Listing(row, Counter((run.method, run.status) for run in found))
    return Found(
        listing=listing,
        runs=found,
        results=results(listing.method_names, found),
        curves=await runs.curves(tx, comparison_id),
    )


async def list_comparisons(
    tx: AsyncSession, organization_id: str, *, after: str | None, limit: int
) -> Page[Listing]:
    """Return a page of the caller's comparisons, newest first."""
    query = select(Comparison).where(Comparison.organization_id == organization_id)
    if after:
        last = await _get(tx, organization_id, after)
        before = tuple_(last.created_at, last.id)
        query = query.where(tuple_(Comparison.created_at, Comparison.id) < before)
    query = query.order_by(Comparison.created_at.desc(), Comparison.id.desc())
    page = cut(list(await tx.scalars(query.limit(limit + 1))), limit)
    counted = await _counted(tx, [row.id for row in page.data])
    listed = [Listing(row, counted[row.id]) for row in page.data]
    return Page(listed, has_more=page.has_more)


async def cancel(tx: AsyncSession, caller: Caller, comparison_id: str) -> None:
    """Cancel the jobs that are not over. Cancelling twice is no error.

    Raises:
        InvalidJobState: all of them have ended, and none by being cancelled.
    """
    await _get(tx, caller.organization_id, comparison_id)
    query = (
        select(Job)
        .join(ComparisonJob, ComparisonJob.job_id == Job.id)
        .where(ComparisonJob.comparison_id == comparison_id)
        .order_by(Job.id)
        .with_for_update(of=Job, key_share=True)  # a run that ends just now ends before, or after
    )
    of_comparison = list(await tx.scalars(query))
    for job in of_comparison:
        if job.status not in TERMINAL:
            await jobs.cancel(tx, caller.organization_id, job.id)
    audit.record(tx, caller, "comparison.cancelled", comparison_id)
    ended = {job.status for job in of_comparison}
    if ended <= TERMINAL - {JobStatus.CANCELLED}:
        raise InvalidJobState(f"All runs of {comparison_id} are over already.")


async def _get(tx: AsyncSession, organization_id: str, comparison_id: str) -> Comparison:
    query = select(Comparison).where(
        Comparison.id == comparison_id, Comparison.organization_id == organization_id
    )
    row = (await tx.scalars(query)).one_or_none()
    if row is None:
        raise NotFound(f"Could not find comparison: {comparison_id}.", param="comparison_id")
    return row


@dataclass(frozen=True)
class _Length:
    """How long a method's runs are, and how often they are evaluated."""

    max_steps: int
    eval_steps: int


async def _lengths(
    tx: AsyncSession, organization_id: str, body: CreateComparison, *, settings: ApiSettings
) -> list[_Length]:
    """Return each method's share of the budget: equal steps, or steps of equal passes."""
    found: list[_Length] = []
    for index, method in enumerate(body.methods):
        asked = plan.job_of(
            body,
            method,
            seed=body.seeds[0],
            max_steps=body.budget.max_steps,
            eval_steps=body.training.eval_steps,
            metadata={},
        )
        try:
            spec = (await jobs.resolve(tx, organization_id, asked, settings=settings)).spec
        except ApiError as error:
            plan.blame(error, body, index)
            raise
        steps = spec.total_steps
        if body.budget.equal == "passes":
            steps = steps_for(spec, spec.total_steps)
        if steps < 1:
            raise InvalidRequest(
                f"The start of {method.name} takes all {spec.total_steps} forward-backward passes;"
                " raise budget.max_steps.",
                param="budget.max_steps",
            )
        every = found[0].eval_steps if found else spec.training.eval_steps
        found.append(_Length(max_steps=steps, eval_steps=every))
    return found


async def _make_jobs(
    tx: AsyncSession,
    row: Comparison,
    body: CreateComparison,
    lengths: list[_Length],
    *,
    settings: ApiSettings,
    bell: Bell,
) -> list[str]:
    """Queue the runs, all methods of a seed after each other, and return their jobs."""
    made = []
    for seed in body.seeds:
        for index, (method, length) in enumerate(zip(body.methods, lengths, strict=True)):
            asked = plan.job_of(
                body,
                method,
                seed=seed,
                max_steps=length.max_steps,
                eval_steps=length.eval_steps,
                metadata={"comparison": row.id, "method": method.name},
            )
            job = await jobs.create(tx, row.organization_id, asked, settings=settings, bell=bell)
            link = ComparisonJob(comparison_id=row.id, method=index, seed=seed, job_id=job.id)
            tx.add(link)
            made.append(job.id)
    await tx.flush()
    return made


async def _counted(tx: AsyncSession, ids: list[str]) -> dict[str, Counter[tuple[int, JobStatus]]]:
    kinds = (ComparisonJob.comparison_id, ComparisonJob.method, Job.status)
    query = (
        select(*kinds, func.count().label("jobs"))
        .join(Job, Job.id == ComparisonJob.job_id)
        .where(ComparisonJob.comparison_id.in_(ids))
        .group_by(*kinds)
    )
    found: dict[str, Counter[tuple[int, JobStatus]]] = {each: Counter() for each in ids}
    for row in await tx.execute(query):
        found[row.comparison_id][row.method, JobStatus(row.status)] = row.jobs
    return found
