"""A comparison on the wire."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.comparisons.inference import Estimate, half_width
from app.comparisons.results import Against, Cost, Result
from app.comparisons.runs import CurvePoint
from app.comparisons.service import Found, Listing
from app.comparisons.verdict import verdict
from app.paging import Listed

Status = Literal["running", "succeeded", "failed", "cancelled"]


class EstimateOut(BaseModel):
    """A mean over n seeds with its 95 % interval; of one seed there is no interval."""

    mean: float
    low: float | None
    high: float | None
    std: float | None
    n: int


class AgainstOut(BaseModel):
    """How much higher a method's validation loss ends than the first one's, paired by seed.

    Below 0 it ends lower, which is better. `significant` holds after Holm's correction
    (`adjusted_p_value`) below 0.05, and not before every run is over.
    """

    difference: float
    low: float | None
    high: float | None
    n: int
    p_value: float | None
    adjusted_p_value: float | None
    significant: bool


class CostOut(BaseModel):
    """What a run takes on average. A point is 0.01 of validation loss won over the base."""

    seconds: float
    gpu_seconds: float
    forward_backward_passes: float
    peak_memory_bytes: float | None
    seconds_per_point: float | None


class CurvePointOut(BaseModel):
    """The validation loss at a step, over the n seeds that have come so far."""

    step: int
    mean: float
    low: float | None
    high: float | None
    n: int


class MethodOut(BaseModel):
    """What is known of a method; `seeds` are those whose runs ended with a loss."""

    name: str
    peft: dict[str, Any]
    perturbation: dict[str, Any]
    seeds: list[int]
    valid_loss: EstimateOut | None
    metrics: dict[str, EstimateOut]
    against_first: AgainstOut | None
    cost: CostOut | None
    sharpness: dict[str, EstimateOut] | None
    curve: list[CurvePointOut]


class ComparedJobOut(BaseModel):
    """The run of a method with a seed."""

    id: str
    method: str
    seed: int
    status: str


class ComparedOut(BaseModel):
    """How many runs there are, and how many are over."""

    jobs: int
    finished: int


class ComparisonSummaryOut(Listed):
    """A comparison in a list."""

    object: Literal["comparison"]
    name: str | None
    status: Status
    created_at: int
    model: str
    training_file: str
    validation_file: str
    budget: dict[str, Any]
    progress: ComparedOut
    method_names: list[str]


class ComparisonOut(ComparisonSummaryOut):
    """N methods × S seeds on one base and one order of the rows, and what they say."""

    jobs: list[ComparedJobOut]
    methods: list[MethodOut]
    verdict: str = Field(description="In words; says when a difference is noise.")


def summary_out(listing: Listing) -> ComparisonSummaryOut:
    """Show a comparison in a list."""
    row, body = listing.row, listing.row.body
    return ComparisonSummaryOut(
        id=row.id,
        object="comparison",
        name=row.name,
        status=listing.status,
        created_at=int(row.created_at.timestamp()),
        model=body["model"],
        training_file=body["training_file"],
        validation_file=body["validation_file"],
        budget=body["budget"],
        progress=ComparedOut(jobs=listing.jobs, finished=listing.finished),
        method_names=listing.method_names,
    )


def comparison_out(found: Found) -> ComparisonOut:
    """Show a comparison with all that is known of it."""
    listing = found.listing
    names = listing.method_names
    jobs = [
        ComparedJobOut(id=run.job_id, method=names[run.method], seed=run.seed, status=run.status)
        for run in found.runs
    ]
    methods = [
        _method_out(result, asked, found.curves.get(place, []))
        for place, (result, asked) in enumerate(
            zip(found.results, listing.row.body["methods"], strict=True)
        )
    ]
    said = verdict(found.results, finished=listing.finished, jobs=listing.jobs)
    summary = summary_out(listing).model_dump()
    return ComparisonOut(**summary, jobs=jobs, methods=methods, verdict=said)


def _method_out(result: Result, asked: dict[str, Any], curve: list[CurvePoint]) -> MethodOut:
    return MethodOut(
        name=result.name,
        peft=asked["peft"],
        perturbation=asked["perturbation"],
        seeds=result.seeds,
        valid_loss=_estimate_out(result.loss) if result.loss else None,
        metrics=_estimates_out(result.scores),
        against_first=_against_out(result.against_first) if result.against_first else None,
        cost=_cost_out(result.cost) if result.cost else None,
        sharpness=_estimates_out(result.sharpness) or None,
        curve=[_curve_point_out(point) for point in curve],
    )


def _estimate_out(found: Estimate) -> EstimateOut:
    return EstimateOut(mean=found.mean, low=found.low, high=found.high, std=found.std, n=found.n)


def _estimates_out(found: dict[str, Estimate]) -> dict[str, EstimateOut]:
    return {name: _estimate_out(each) for name, each in found.items()}


def _against_out(against: Against) -> AgainstOut:
    found = against.found
    return AgainstOut(
        difference=found.mean,
        low=found.low,
        high=found.high,
        n=found.n,
        p_value=found.p_value,
        adjusted_p_value=against.adjusted_p,
        significant=against.significant,
    )


def _cost_out(cost: Cost) -> CostOut:
    return CostOut(
        seconds=cost.seconds,
        gpu_seconds=cost.gpu_seconds,
        forward_backward_passes=cost.forward_backward_passes,
        peak_memory_bytes=cost.peak_memory_bytes,
        seconds_per_point=cost.seconds_per_point,
    )


def _curve_point_out(point: CurvePoint) -> CurvePointOut:
    reach = None if point.std is None else half_width(point.std, point.n)
    return CurvePointOut(
        step=point.step,
        mean=point.mean,
        low=None if reach is None else point.mean - reach,
        high=None if reach is None else point.mean + reach,
        n=point.n,
    )
