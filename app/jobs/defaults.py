""" "auto" → numbers: called once, at submit, and shown to the user in the job."""

import math
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidRequest
from app.jobs.compatible import check_resolved
from app.jobs.methods import (
    DpoHyperparameters,
    Hyperparameters,
    ReinforcementHyperparameters,
)
from app.jobs.policies import resolve_policy
from app.jobs.schemas import (
    CreateJob,
    EarlyStoppingIn,
    PeftIn,
    PerturbationIn,
    ResourcesIn,
    TrainingIn,
)
from app.jobs.spec import (
    BudgetSpec,
    DataSpec,
    DpoSpec,
    EarlyStoppingSpec,
    EvaluationSpec,
    Method,
    PeftSpec,
    PerturbationSpec,
    PerturbationType,
    ReinforcementSpec,
    ResourcesSpec,
    Task,
    TrainingSpec,
    TrainSpec,
    epoch_steps,
    planned_steps,
)

LEARNING_RATES: dict[Method, float] = {"supervised": 2e-4, "dpo": 2e-5, "reinforcement": 2e-5}
DPO_BETA = 0.1
MAX_LENGTH = 2048
MICRO_BATCH_SIZE = 8
PROMPTS = 8  # of a step, at most, unless asked for: each is a group of rollouts
LORA_PLUS_RATIO = 16.0
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
    task: Task
    data: DataSpec
    source: PeftSpec | None = None  # of the fine-tuned model to go on from


def resolve(body: CreateJob, facts: Facts, *, seed: int) -> TrainSpec:
    """Return the spec of a job, with nothing left to decide but the precision of the device.

    Raises:
        InvalidRequest: values that contradict each other.
    """
    hyperparameters = body.chosen_hyperparameters()
    resources = _resources(body.resources)
    method = body.chosen_method()
    asked = body.policy()
    policy = resolve_policy(asked, context_length=facts.context_length) if asked else None
    training = _training(
        hyperparameters, body.training, facts, policy, method=method, gpus=resources.gpus
    )
    spec = TrainSpec(
        version=1,
        job_id=facts.job_id,
        base_model=body.model,
        task=facts.task,
        method=method,
        dpo=_dpo(hyperparameters),
        reinforcement=policy,
        seed=seed,
        peft=_peft(body.peft, facts.source, method=method),
        perturbation=_perturbation(body.perturbation),
        training=training,
        evaluation=EvaluationSpec.model_validate(body.evaluation.model_dump()),
        resources=resources,
        budget=BudgetSpec.model_validate(body.budget.model_dump()),
        data=facts.data,
        total_steps=planned_steps(training, facts.data.train_rows, policy),
    )
    check_resolved(spec)
    return spec


def shown_hyperparameters(spec: TrainSpec) -> dict[str, float]:
    """Return what a job came to, under OpenAI's names."""
    shown = {
        "n_epochs": spec.training.n_epochs,
        "batch_size": spec.training.batch_size,
        "learning_rate_multiplier": spec.training.learning_rate / LEARNING_RATES[spec.method],
    }
    return shown if spec.dpo is None else shown | {"beta": spec.dpo.beta}


def shown_method(spec: TrainSpec) -> dict[str, Any]:
    """Return how a job learns, as OpenAI shows it."""
    policy = spec.reinforcement.model_dump(mode="json") if spec.reinforcement else {}
    told = {"hyperparameters": shown_hyperparameters(spec)}
    return {"type": spec.method, spec.method: policy | told}


def _dpo(asked: Hyperparameters) -> DpoSpec | None:
    if not isinstance(asked, DpoHyperparameters):
        return None
    return DpoSpec(beta=asked.beta or DPO_BETA)


def _peft(asked: PeftIn, source: PeftSpec | None, *, method: Method) -> PeftSpec:
    if source is not None:
        taken = _going_on(source, asked.source)
        return taken if method == "supervised" else taken.model_copy(update={"dropout": 0.0})
    return PeftSpec(
        method=asked.method,
        r=asked.r,
        alpha=asked.alpha if asked.alpha is not None else 2.0 * asked.r,
        dropout=asked.dropout,
        target_modules=asked.target_modules,
        lr_ratio=(asked.lr_ratio or LORA_PLUS_RATIO) if asked.method == "lora_plus" else None,
        source=None,
    )


def _going_on(source: PeftSpec, name: str | None) -> PeftSpec:
    """Return how an earlier adapter is trained on; one that changed its base left twice its rank.

    Raises:
        InvalidRequest: the artifact is no adapter that can be trained on.
    """
    if source.method in ("full", "adalora"):
        why = {
            "full": "it is a full model: put it into the models folder and train from there",
            "adalora": "its ranks are pruned and cannot grow again",
        }[source.method]
        raise InvalidRequest(f"Cannot go on from {name}: {why}.", param="peft.from")
    changes: dict[str, object] = {"source": name}
    if source.method in ("pissa", "lora_ga") and source.source is None:
        changes |= {"r": 2 * source.r, "alpha": 2 * source.alpha}
    if source.method in ("pissa", "lora_ga"):
        changes["method"] = "lora"
    return source.model_copy(update=changes)


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
        resolved["apn_cap"] = given.get("apn_cap", APN_CAP)
    elif "apn_cap" in given:
        message = (
            f'apn_cap bounds the scale of apn "paper"; with "{resolved["apn"]}" it says nothing.'
        )
        raise InvalidRequest(message, param="perturbation.apn_cap")
    return PerturbationSpec(type=asked.type, **resolved)


def _resources(asked: ResourcesIn) -> ResourcesSpec:
    """Refuse what cannot work.

    ZeRO-3 is refused, not merely discouraged: it shares out the weights themselves, and a factor
    above stage3_param_persistence_threshold is empty between forwards, where MGPO moves and
    restores it in place. The move would be lost without an error.
    """
    if asked.zero_stage == 3:
        message = (
            "zero_stage 3 is not offered: it takes the weights apart between forwards, where"
            " LoRA-MGPO moves them. Use stage 2: what LoRA trains is small."
        )
        raise InvalidRequest(message, param="resources.zero_stage")
    if asked.offload and asked.zero_stage not in (1, 2):
        message = "offload moves DeepSpeed's share of the optimizer: set zero_stage to 1 or 2."
        raise InvalidRequest(message, param="resources.offload")
    return ResourcesSpec(gpus=asked.gpus, zero_stage=asked.zero_stage, offload=asked.offload)


def _training(
    asked: Hyperparameters,
    extra: TrainingIn,
    facts: Facts,
    policy: ReinforcementSpec | None,
    *,
    method: Method,
    gpus: int,
) -> TrainingSpec:
    rows = facts.data.train_rows
    at_once = MICRO_BATCH_SIZE // (2 if method == "dpo" else 1)  # a pair is two conversations
    most = PROMPTS if method == "reinforcement" else rows
    batch_size = asked.batch_size or min(math.ceil(_batch_size(rows) / gpus) * gpus, most)
    each = policy.group_size if policy else 1
    micro = _micro(
        batch_size, extra.micro_batch_size, at_once=at_once, rows=rows, each=each, gpus=gpus
    )
    epoch = epoch_steps(batch_size, rows, policy)
    n_epochs = asked.n_epochs or _n_epochs(rows)
    total = extra.max_steps or epoch * n_epochs
    multiplier = asked.learning_rate_multiplier or 1.0
    return TrainingSpec(
        n_epochs=n_epochs,
        max_steps=extra.max_steps,
        batch_size=batch_size,
        micro_batch_size=micro,
        learning_rate=extra.learning_rate or LEARNING_RATES[method] * multiplier,
        warmup_ratio=extra.warmup_ratio,
        scheduler=extra.scheduler,
        weight_decay=extra.weight_decay,
        max_grad_norm=extra.max_grad_norm,
        max_length=extra.max_length or min(facts.context_length, MAX_LENGTH),
        precision=extra.precision,
        gradient_checkpointing=extra.gradient_checkpointing,
        eval_steps=extra.eval_steps or _interval(asked) or max(1, min(epoch, total // 10)),
        checkpoint_steps=extra.checkpoint_steps or min(epoch, total),
        early_stopping=_early_stopping(extra.early_stopping),
    )


def _early_stopping(asked: EarlyStoppingIn | None) -> EarlyStoppingSpec | None:
    return EarlyStoppingSpec(**asked.model_dump()) if asked else None


def _interval(asked: Hyperparameters) -> int | None:
    return asked.eval_interval if isinstance(asked, ReinforcementHyperparameters) else None


def _micro(
    batch_size: int, asked: int | None, *, at_once: int, rows: int, each: int, gpus: int
) -> int:
    """Return how much of a step a device takes at once: rows, or the rollouts they become.

    Raises:
        InvalidRequest: the rows make no such batch, or it is not shared out evenly.
    """
    if batch_size > rows:
        message = f"batch_size {batch_size} is more than the {rows} examples of the file."
        raise InvalidRequest(message, param="hyperparameters.batch_size")
    if batch_size % gpus:
        message = f"{gpus} gpus do not share batch_size {batch_size} evenly; choose a multiple."
        raise InvalidRequest(message, param="hyperparameters.batch_size")
    share = batch_size // gpus * each
    micro = asked or _largest_divisor(share, limit=at_once)
    if share % micro:
        told = f"batch_size {batch_size}"
        if each > 1:
            told += f" times group_size {each}"
        if gpus > 1:
            told += f", of which each of {gpus} gpus takes {share}"
        message = f"micro_batch_size {micro} does not divide {told}."
        raise InvalidRequest(message, param="training.micro_batch_size")
    return micro


def _batch_size(rows: int) -> int:
    """Return a power of two near 1/64 of the rows, from 4 to 32."""
    return min(32, max(4, 1 << round(math.log2(max(rows / 64, 1)))))


def _n_epochs(rows: int) -> int:
    return 3 if rows < 10_000 else 1


def _largest_divisor(number: int, *, limit: int) -> int:
    return max(size for size in range(1, limit + 1) if number % size == 0)
