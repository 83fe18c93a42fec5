"""/v1/comparisons"""

from typing import Annotated

from fastapi import APIRouter, Depends

from app.comparisons import service
from app.comparisons.asked import CreateComparison
from app.comparisons.schemas import (
    ComparisonOut,
    ComparisonSummaryOut,
    comparison_out,
    summary_out,
)
from app.jobs.submissions import Request as Submitted
from app.paging import ListOut, list_out
from app.web import After, Caller, Config, Limit, MayRepeat, Ring, Tx, Writer

router = APIRouter(prefix="/v1/comparisons", tags=["comparisons"])


async def _submission(body: CreateComparison, caller: Writer, sent: MayRepeat) -> Submitted:
    """Name the request, so that a client that sends it again is told of the first comparison."""
    return sent.submission(caller, body)


@router.post("", response_model=ComparisonOut)
async def create_comparison(
    body: CreateComparison,
    request: Annotated[Submitted, Depends(_submission)],
    tx: Tx,
    settings: Config,
    bell: Ring,
) -> ComparisonOut:
    """Run N methods × S seeds on one base and one order of the rows: all the jobs, or none."""
    made = await service.submit(tx, request, body, settings=settings, bell=bell)
    return comparison_out(await service.find(tx, request.by.organization_id, made))


@router.get("", response_model=ListOut[ComparisonSummaryOut])
async def list_comparisons(
    tx: Tx, caller: Caller, after: After = None, limit: Limit = 20
) -> ListOut[ComparisonSummaryOut]:
    """List your comparisons, newest first."""
    page = await service.list_comparisons(tx, caller.organization_id, after=after, limit=limit)
    return list_out([summary_out(each) for each in page.data], has_more=page.has_more)


@router.get("/{comparison_id}", response_model=ComparisonOut)
async def get_comparison(comparison_id: str, tx: Tx, caller: Caller) -> ComparisonOut:
    """Show means with intervals, significance, cost, sharpness, curves, and a verdict in words."""
    return comparison_out(await service.find(tx, caller.organization_id, comparison_id))


@router.post("/{comparison_id}/cancel", response_model=ComparisonOut)
async def cancel_comparison(comparison_id: str, tx: Tx, caller: Writer) -> ComparisonOut:
    """Cancel those of its jobs that are not over."""
    await service.cancel(tx, caller, comparison_id)
    return comparison_out(await service.find(tx, caller.organization_id, comparison_id))
