"""Reads a job's curves and judges them."""

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from app.jobs import service as jobs
from app.jobs.buckets import buckets
from app.jobs.spec import TrainSpec
from app.stability.curves import Point
from app.stability.events import FEWEST_EVALUATIONS, FEWEST_STEPS, Finding, find
from app.tables import Metric

MOST_POINTS = 2000  # of each curve: longer runs are read in buckets, whose extremes keep spikes
TRAIN, VALID, GRAD_NORM = "train_loss", "valid_loss", "grad_norm"
CLAMPED = "perturbation_clamped_share"
READ = (TRAIN, VALID, GRAD_NORM, CLAMPED)
GRAVITY = ("info", "warn", "error")


@dataclass(frozen=True)
class Read:
    """A job's spec, its curves by the name of the metric, and how often it was evaluated."""

    job_id: str
    spec: TrainSpec
    curves: dict[str, list[Point]]
    evaluations: int


@dataclass(frozen=True)
class Report:
    """What was found in a run, and that in words."""

    read: Read
    findings: list[Finding]
    summary: str

    @property
    def healthy(self) -> bool:
        return all(finding.severity == "info" for finding in self.findings)


async def read(tx: AsyncSession, organization_id: str, job_id: str) -> Read:
    """Return what a report is made of.

    Raises:
        NotFound: no such job, or another tenant's.
    """
    job = await jobs.get(tx, organization_id, job_id)
    curves: dict[str, list[Point]] = {name: [] for name in READ}
    evaluations = 0
    # PostgreSQL sorts NaN above all, so a bucket's highest value shows it.
    of_job = (Metric.job_id == job_id, Metric.name.in_(READ))
    for row in await tx.execute(buckets(of_job, MOST_POINTS)):
        curves[row.name].append(Point(row.first, row.last, row.low, row.high, row.mean))
        evaluations += row.seen if row.name == VALID else 0
    return Read(job_id, TrainSpec.model_validate(job.spec), curves, evaluations)


def judge(read: Read) -> Report:
    """Return the report; takes some hundredths of a second."""
    curves = read.curves
    findings = find(
        curves[TRAIN],
        curves[VALID],
        grad_norm=curves[GRAD_NORM],
        clamped_share=curves[CLAMPED] if read.spec.perturbation.type == "mgpo" else (),
    )
    return Report(read, findings, _summary(read, findings))


def _summary(read: Read, findings: list[Finding]) -> str:
    train = read.curves[TRAIN]
    steps = train[-1].last_step if train else 0
    if findings:
        gravest = max(findings, key=lambda finding: GRAVITY.index(finding.severity))
        found = f"{len(findings)} findings" if len(findings) > 1 else "1 finding"
        words = gravest.kind.replace("_", " ")
        return (
            f"{found} in {steps} steps; the gravest is {words} ({gravest.severity}) at steps"
            f" {gravest.first_step} to {gravest.last_step}."
        )
    if len(train) < FEWEST_STEPS:
        return f"{steps} steps are done; a curve can be judged from {FEWEST_STEPS} on."
    told = f"Nothing stands out in {steps} steps and {read.evaluations} evaluations."
    if read.evaluations < FEWEST_EVALUATIONS:
        told += (
            f" With fewer than {FEWEST_EVALUATIONS} evaluations over-fitting is hard to see: give a"
            " validation_file, or lower training.eval_steps."
        )
    return told
