"""A job's stability report on the wire."""

from typing import Literal

from pydantic import BaseModel, Field

from app.jobs.spec import TrainSpec
from app.stability.advice import advice
from app.stability.events import Finding, Kind, Severity


class FindingOut(BaseModel):
    """One event of the run, with what shows it and what to change."""

    kind: Kind
    severity: Severity
    first_step: int
    last_step: int
    metric: str
    evidence: str
    advice: str = Field(description="Which field of the job's body to turn.")


class ReportOut(BaseModel):
    """What a run's curves tell so far; healthy while nothing worse than info is found."""

    object: Literal["fine_tuning.job.report"]
    job_id: str
    healthy: bool
    summary: str
    findings: list[FindingOut]


def finding_out(finding: Finding, spec: TrainSpec) -> FindingOut:
    """Show a finding on the wire."""
    return FindingOut(
        kind=finding.kind,
        severity=finding.severity,
        first_step=finding.first_step,
        last_step=finding.last_step,
        metric=finding.metric,
        evidence=finding.evidence,
        advice=advice(finding, spec),
    )
