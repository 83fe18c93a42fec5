"""Runs as they stand after training, without training."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.comparisons.runs import Run
from app.jobs.spec import TrainSpec
from app.jobs.states import JobStatus
from tests.worker.trainer.runs import SPEC


def spec_of(**changes: Any) -> TrainSpec:
    """A spec; `changes` are merged into it, group by group."""
    merged = {
        key: value | changes.get(key, {}) if isinstance(value, dict) else changes.get(key, value)
        for key, value in SPEC.items()
    }
    return TrainSpec.model_validate(merged)


def run_of(method: int, seed: int, loss: float | None, **changes: Any) -> Run:
    """A run that ended with a loss, or has not ended; it began with 2.0 and took a minute."""
    values: dict[str, Any] = {
        "job_id": f"ftjob-{method}-{seed}",
        "method": method,
        "seed": seed,
        "status": JobStatus.RUNNING if loss is None else JobStatus.SUCCEEDED,
        "spec": spec_of(),
        "steps": 100,
        "seconds": 60.0,
        "gpu_seconds": 120.0,
        "peak_memory_bytes": 1e9,
        "start": {"valid_loss": 2.0},
        "end": {} if loss is None else {"valid_loss": loss},
    }
    return Run(**(values | changes))


def runs_of(losses: Mapping[str, Sequence[float | None]]) -> tuple[list[str], list[Run]]:
    """Names and runs of methods, by their losses: one each seed."""
    runs = [
        run_of(method, seed, loss)
        for method, of_method in enumerate(losses.values())
        for seed, loss in enumerate(of_method, 1)
    ]
    return list(losses), runs
