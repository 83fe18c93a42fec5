"""/v1/fine_tuning/jobs/{job_id}/report"""

import asyncio

from fastapi import APIRouter

from app.stability import service
from app.stability.schemas import ReportOut, finding_out
from app.web import Caller, Db

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])


@router.get("/{job_id}/report", response_model=ReportOut)
async def get_report(job_id: str, db: Db, caller: Caller) -> ReportOut:
    """Judge a job's curves: spikes, plateaus, divergence, second descent, over-fitting."""
    async with db.transaction() as tx:
        read = await service.read(tx, caller.organization_id, job_id)
    report = await asyncio.to_thread(service.judge, read)
    return ReportOut(
        object="fine_tuning.job.report",
        job_id=job_id,
        healthy=report.healthy,
        summary=report.summary,
        findings=[finding_out(finding, read.spec) for finding in report.findings],
    )
