""" "auto" → numbers: called once, at submit, and shown to the user in the job."""

import math
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidRequest
from app.jobs.schemas import CreateJob, Hyperparameters, PeftIn, PerturbationIn, TrainingIn
from app.jobs.spec import (
    DataSpec,
    PeftSpec,
    PerturbationSpec,
    PerturbationType,
    ResourcesSpec,
    TrainingSpec,
    TrainSpec,
)

BASE_LEARNING_RATE = 2e-4
MAX_LENGTH = 2048
MICRO_BATCH_SIZE = 8
APN_CAP = 4.0
PERTURBATIONS: dict[PerturbationType, dict[str, Any]] = {
    "mgpo": {
        "rho": 0.05,
        "beta": 0.9,
        "mu": None,
        "norm": "module",
        "apn": "relative",
        "apn_cap": None,
        "rho_schedule": "constant",
        "start_step": 0,
    },
    "random": {"rho": 0.05, "start_step": 0},
    "ggpo": {"rho": 0.03, "beta": 0.01, "start_step": 0},
    "none": {},
}


@dataclass(frozen=True)
class Facts:
    """What the resolution needs to know of the data and the base model."""

    job_id: str
    context_length: int
    data: DataSpec


def resolve(body: CreateJob, facts: Facts, *, seed: int) -> TrainSpec:
    """Return the spec of a job, with nothing left to decide but the precision of the device.

    Raises:
        InvalidRequest: values that contradict each other.
    """
    hyperparameters = body.chosen_hyperparameters()
    training = _training(hyperparameters, body.training, facts)
    return TrainSpec(
        version=1,
        job_id=facts.job_id,
        base_model=body.model,
        method="supervised",
        seed=seed,
        peft=_peft(body.peft),
        perturbation=_perturbation(body.perturbation),
        training=training,
        resources=ResourcesSpec(gpus=body.resources.gpus, zero_stage=body.resources.zero_stage),
        data=facts.data,
        total_steps=training.max_steps
        or _steps_per_epoch(facts, training.batch_size) * training.n_epochs,
    )


def _peft(asked: PeftIn) -> PeftSpec:
    return PeftSpec(
        method=asked.method,
        r=asked.r,
        alpha=asked.alpha if asked.alpha is not None else 2.0 * asked.r,
        dropout=asked.dropout,
        target_modules=asked.target_modules,
    )


def _perturbation(asked: PerturbationIn) -> PerturbationSpec:
    """Fill in the defaults of the type, and refuse what says nothing to it."""
    known = PERTURBATIONS[asked.type]
    given = asked.model_dump(exclude={"type"}, exclude_none=True)
    for name in given.keys() - known.keys():
        fields = f"knows {', '.join(known)}" if known else "has no settings"
        message = f"{name} says nothing to the perturbation {asked.type}, which {fields}."
        raise InvalidRequest(message, param=f"perturbation.{name}")
    resolved = known | given
    if resolved.get("apn") == "paper":
        resolved.setdefault("apn_cap", APN_CAP)
    elif "apn_cap" in given:
        message = (
            f'apn_cap bounds the scale of apn "paper"; with "{resolved["apn"]}" it says nothing.'
        )
        raise InvalidRequest(message, param="perturbation.apn_cap")
    return PerturbationSpec(type=asked.type, **resolved)


def _training(asked: Hyperparameters, extra: TrainingIn, facts: Facts) -> TrainingSpec:
    rows = facts.data.train_rows
    batch_size = asked.batch_size or _batch_size(rows)
    if batch_size > rows:
        message = f"batch_size {batch_size} is more than the {rows} examples of the file."
        raise InvalidRequest(message, param="hyperparameters.batch_size")
    micro = extra.micro_batch_size or _largest_divisor(batch_size, limit=MICRO_BATCH_SIZE)
    if batch_size % micro:
        message = f"micro_batch_size {micro} does not divide batch_size {batch_size}."
        raise InvalidRequest(message, param="training.micro_batch_size")
    epoch = _steps_per_epoch(facts, batch_size)
    n_epochs = asked.n_epochs or _n_epochs(rows)
    total = extra.max_steps or epoch * n_epochs
    multiplier = asked.learning_rate_multiplier or 1.0
    return TrainingSpec(
        n_epochs=n_epochs,
        max_steps=extra.max_steps,
        batch_size=batch_size,
        micro_batch_size=micro,
        learning_rate=extra.learning_rate or BASE_LEARNING_RATE * multiplier,
        warmup_ratio=extra.warmup_ratio,
        scheduler=extra.scheduler,
        weight_decay=extra.weight_decay,
        max_grad_norm=extra.max_grad_norm,
        max_length=extra.max_length or min(facts.context_length, MAX_LENGTH),
        precision=extra.precision,
        gradient_checkpointing=extra.gradient_checkpointing,
        eval_steps=extra.eval_steps or max(1, min(epoch, total // 10)),
        checkpoint_steps=extra.checkpoint_steps or min(epoch, total),
    )


def _batch_size(rows: int) -> int:
    """Return a power of two near 1/64 of the rows, from 4 to 32."""
    return min(32, max(4, 1 << round(math.log2(max(rows / 64, 1)))))


def _n_epochs(rows: int) -> int:
    return 3 if rows < 10_000 else 1


def _steps_per_epoch(facts: Facts, batch_size: int) -> int:
    return math.ceil(facts.data.train_rows / batch_size)


def _largest_divisor(number: int, *, limit: int) -> int:
    return max(size for size in range(1, limit + 1) if number % size == 0)
