"""A comparison that is over, as the API tells of one: what training it would take minutes for."""

from typing import Any

from playwright.async_api import Page

from app.comparisons.schemas import (
    AgainstOut,
    ComparedJobOut,
    ComparedOut,
    ComparisonOut,
    CostOut,
    CurvePointOut,
    EstimateOut,
    MethodOut,
)

NAME = "rho on arithmetic"
VERDICT = "LoRA-MGPO ends 0.0815 lower than LoRA (p = 0.0046, 3 seeds): that is no noise."
COST = CostOut(
    seconds=95.2,
    gpu_seconds=95.2,
    forward_backward_passes=600.0,
    peak_memory_bytes=412_000_000.0,
    seconds_per_point=0.84,
)


def comparison() -> dict[str, Any]:
    """Return one of three methods; the third ran with one seed alone, and has no intervals."""
    plain, mgpo, dora = (
        _method("LoRA", end=1.6612, half=0.0204, seeds=[1, 2, 3]),
        _method("LoRA-MGPO", end=1.5797, half=0.0151, seeds=[1, 2, 3]),
        _method("DoRA", end=1.6433, half=None, seeds=[2]),
    )
    mgpo.against_first = AgainstOut(
        difference=-0.0815, low=-0.1012, high=-0.0618, n=3,
        p_value=0.0023, adjusted_p_value=0.0046, significant=True,
    )  # fmt: skip
    dora.against_first = AgainstOut(
        difference=-0.0127, low=None, high=None, n=1,
        p_value=None, adjusted_p_value=None, significant=False,
    )  # fmt: skip
    methods = [plain, mgpo, dora]
    jobs = [
        ComparedJobOut(
            id=f"ftjob-{place}{seed}",
            method=method.name,
            seed=seed,
            status="succeeded" if seed in method.seeds else "failed",
        )
        for place, method in enumerate(methods)
        for seed in (1, 2, 3)
    ]
    return ComparisonOut(
        id="cmp-finished", object="comparison", name=NAME, status="succeeded",
        created_at=1_790_000_000, model="tiny-llama", training_file="file-train",
        validation_file="file-valid",
        budget={"equal": "steps", "max_steps": 600}, progress=ComparedOut(jobs=9, finished=9),
        method_names=[method.name for method in methods], jobs=jobs, methods=methods,
        verdict=VERDICT,
    ).model_dump(mode="json")  # fmt: skip


async def answer_with(page: Page, told: dict[str, Any]) -> list[str]:
    """Let the page read this comparison at its id; returns the requests, as they come."""
    asked: list[str] = []

    async def answer(route: Any) -> None:
        asked.append(route.request.url)
        await route.fulfill(json=told)

    await page.route(f"**/v1/comparisons/{told['id']}", answer)
    return asked


def _method(name: str, *, end: float, half: float | None, seeds: list[int]) -> MethodOut:
    curve = [
        _point(step, end + 0.9 / (1 + step / 60), half and half * (1 + 120 / (30 + step)))
        for step in range(30, 601, 30)
    ]
    sharpness = {"worst": _estimate(0.0342, half and 0.004), "mean": _estimate(0.0021, None)}
    return MethodOut(
        name=name, peft={"method": "lora"}, perturbation={"type": "none"}, seeds=seeds,
        valid_loss=_estimate(end, half),
        metrics={"valid_mean_token_accuracy": _estimate(0.62, half)},
        against_first=None, cost=COST, sharpness=sharpness, curve=curve,
    )  # fmt: skip


def _estimate(mean: float, half: float | None) -> EstimateOut:
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return EstimateOut(
        mean=mean, low=low, high=high, std=half and half / 2.48, n=1 if half is None else 3
    )


def _point(step: int, mean: float, half: float | None) -> CurvePointOut:
    estimate = _estimate(mean, half)
    return CurvePointOut(step=step, mean=mean, low=estimate.low, high=estimate.high, n=estimate.n)
