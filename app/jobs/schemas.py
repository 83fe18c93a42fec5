"""Jobs on the wire: what is asked, and what is shown."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from sqlalchemy import Row

from app.jobs.methods import Hyperparameters, Method, Reinforcement
from app.jobs.rollouts import Group
from app.jobs.spec import Method as JobMethod
from app.jobs.spec import PeftMethod, PerturbationType, Task, TrainSpec
from app.paging import Listed, ListOut, Page, list_out
from app.schemas import NO_CONTROL, Asked
from app.tables import Attempt, Checkpoint, Job, JobEvent, Rollout
from app.tars import Entry

MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = dict[MetadataKey, MetadataValue]
Names = Annotated[tuple[str, ...], Field(strict=False)]  # JSON has lists alone
Suffix = Annotated[str, Field(min_length=1, max_length=64, pattern=NO_CONTROL)]
Named = Annotated[str, Field(min_length=1, max_length=128, pattern=NO_CONTROL)]


class WandbIn(Asked):
    """The run at Weights & Biases; it is called by the job's id when it has no name."""

    project: Named
    entity: Named | None = None
    name: Named | None = None
    tags: Annotated[list[Annotated[Named, Field(max_length=64)]], Field(max_length=32)] | None = (
        None
    )


class IntegrationIn(Asked):
    """Where the metrics are sent too, with the key that your organization stored."""

    type: Literal["wandb"]
    wandb: WandbIn


class PeftIn(Asked):
    """Which weights are trained: the method, its rank, scale, dropout and where.

    `from` goes on from a fine-tuned model of yours, which brings the rest of this object with it.
    """

    method: PeftMethod = "lora"
    r: int = Field(default=8, ge=1, le=1024)
    alpha: FiniteFloat | None = Field(default=None, gt=0, description="Twice the rank by default.")
    dropout: FiniteFloat = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | Names = "all-linear"
    lr_ratio: FiniteFloat | None = Field(
        default=None, ge=1, le=1024, description="lora_plus: how much faster B learns; 16."
    )
    source: str | None = Field(default=None, alias="from", max_length=256)


class PerturbationIn(Asked):
    """Where the gradient is taken; null is the default of the type.

    mgpo is LoRA-MGPO's look-ahead along the momentum, random is Flat-LoRA's noise on the merged
    weight, ggpo is LoRA-GGPO's gradient-guided noise, none is plain LoRA.
    """

    type: PerturbationType = "mgpo"
    rho: FiniteFloat | None = Field(
        default=None,
        ge=0,
        le=10,
        description="mgpo: ρ, the length of each module's look-ahead (0.05)."
        " random: ρ, the noise over the norm of a weight's row, at the end of its ramp (0.05)."
        " ggpo: σ, how much the norm of a weight's row counts in the noise (0.03).",
    )
    beta: FiniteFloat | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="mgpo: β of the smoothed gradient norms (0.9)."
        " ggpo: β, how much the square of a gradient's row counts in the noise (0.01).",
    )
    mu: FiniteFloat | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="mgpo: μ of an own momentum; null follows AdamW's, without memory of its own.",
    )
    norm: Literal["module", "global"] | None = Field(
        default=None, description="mgpo: one length for each module (default), or for all together."
    )
    apn: Literal["relative", "paper", "off"] | None = Field(
        default=None,
        description="mgpo: adaptive scale of a module: relative to the mean gradient norm (default)"
        ", one over its own as the paper prints it, or none.",
    )
    apn_cap: FiniteFloat | None = Field(
        default=None, gt=0, le=1e6, description='mgpo: the largest scale of apn "paper" (4).'
    )
    rho_schedule: Literal["constant", "linear", "cosine"] | None = Field(
        default=None, description="mgpo: constant (default), or decaying to 0 over the run."
    )
    start_step: int | None = Field(
        default=None, ge=0, description="How many optimizer steps go unperturbed first (0)."
    )


class EarlyStoppingIn(Asked):
    """End the run after `patience` evaluations without a valid_loss lower by `min_delta`.

    The adapter is then that of the best evaluation.
    """

    patience: int = Field(default=3, ge=1, le=1000)
    min_delta: FiniteFloat = Field(default=0.0, ge=0)


class SharpnessIn(Asked):
    """Measure how the loss rises in a ball around the adapter; rho is relative to its norm."""

    rho: FiniteFloat = Field(default=0.05, gt=0, le=10)
    ascent_steps: int = Field(default=3, ge=1, le=100)
    directions: int = Field(default=8, ge=1, le=1000)
    batches: int = Field(default=4, ge=1, le=1000)


class EvaluationIn(Asked):
    """What is measured on the validation file besides the loss."""

    sharpness: SharpnessIn | None = None


class TrainingIn(Asked):
    """The training loop; what is left out is resolved at submit."""

    learning_rate: FiniteFloat | None = Field(default=None, gt=0, le=1)
    warmup_ratio: FiniteFloat = Field(default=0.03, ge=0, le=1)
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: FiniteFloat = Field(default=0.0, ge=0, le=1)
    max_grad_norm: FiniteFloat = Field(default=1.0, gt=0)
    max_length: int | None = Field(default=None, ge=8, le=1 << 20)
    micro_batch_size: int | None = Field(default=None, ge=1)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: bool = False
    max_steps: int | None = Field(default=None, ge=1)
    eval_steps: int | None = Field(default=None, ge=1)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    early_stopping: EarlyStoppingIn | None = None


class ResourcesIn(Asked):
    """How many devices of one worker, and what they share out among them.

    zero_stage null is data parallelism; a number is DeepSpeed with that ZeRO stage. offload
    "optimizer" keeps the optimizer's state in the machine's memory.
    """

    gpus: int = Field(default=1, ge=1, le=64)
    zero_stage: Literal[0, 1, 2, 3] | None = None
    offload: Literal["optimizer"] | None = None


class BudgetIn(Asked):
    """The most a job may use; at its end the run stops and delivers the adapter it has by then.

    The learning rate follows the schedule of the whole job. `max_duration_s` counts seconds of
    running, over all attempts, not of waiting.
    """

    max_duration_s: int | None = Field(default=None, ge=1, le=10 * 365 * 86400)
    max_steps: int | None = Field(default=None, ge=1)


class CreateJob(Asked):
    """A fine-tuning job: OpenAI's fields, and Basin's beside them."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "my-llama",
                "training_file": "file-6Jw1…",
                "validation_file": None,
                "suffix": "support-bot",
                "seed": 7,
                "method": {
                    "type": "supervised",
                    "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 8}},
                },
                "peft": {"method": "lora", "r": 8, "alpha": 16},
                "perturbation": {"type": "mgpo", "rho": 0.05},
                "training": {"learning_rate": 2e-4},
            }
        }
    )

    model: str = Field(min_length=1, max_length=256)
    training_file: str = Field(max_length=64)
    validation_file: str | None = Field(default=None, max_length=64)
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    suffix: Suffix | None = Field(
        default=None, description="A part of the model's name, where what is no word becomes -."
    )
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    metadata: Metadata | None = Field(default=None, max_length=16)
    integrations: list[IntegrationIn] | None = Field(default=None, max_length=1)
    peft: PeftIn = PeftIn()
    perturbation: PerturbationIn = PerturbationIn()
    training: TrainingIn = TrainingIn()
    evaluation: EvaluationIn = EvaluationIn()
    resources: ResourcesIn = ResourcesIn()
    budget: BudgetIn = BudgetIn()
    priority: int = Field(
        default=0, ge=-100, le=100, description="Of two jobs that wait, the higher one runs first."
    )

    def chosen_method(self) -> JobMethod:
        """Return how it learns."""
        return self.method.type if self.method else "supervised"

    def chosen_hyperparameters(self) -> Hyperparameters:
        """Return the method's hyperparameters, else the old top-level form, else all auto."""
        if self.method:
            return self.method.hyperparameters()
        return self.hyperparameters or Hyperparameters()

    def policy(self) -> Reinforcement | None:
        """Return how it learns from rewards, if it does."""
        if self.chosen_method() != "reinforcement" or self.method is None:
            return None
        return self.method.reinforcement or Reinforcement()


class ErrorOut(BaseModel):
    """Why a job failed; null for one that did not."""

    code: str
    message: str
    param: str | None


class QueueOut(BaseModel):
    """Where a waiting job stands (1 is next), about how long it waits, and why."""

    position: int
    ahead: int
    eta_s: int | None
    reason: str


class ProgressOut(BaseModel):
    step: int
    total_steps: int


class JobOut(Listed):
    """A job, as OpenAI's client reads it, with the resolved extension objects beside."""

    object: Literal["fine_tuning.job"]
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    model: str
    task: Task
    fine_tuned_model: str | None
    organization_id: str
    status: str
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    error: ErrorOut | None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    seed: int
    metadata: Metadata | None
    integrations: list[Any]
    suffix: str | None
    priority: int
    attempt: int
    progress: ProgressOut
    queue: QueueOut | None
    peft: dict[str, Any]
    perturbation: dict[str, Any]
    training: dict[str, Any]
    evaluation: dict[str, Any]
    resources: dict[str, Any]
    budget: dict[str, Any]


class EventOut(Listed):
    """One line of a job's story."""

    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any]


class CheckpointOut(Listed):
    """An adapter from the middle of a run."""

    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, Any]
    step_number: int


class TurnOut(BaseModel):
    """One action of a rollout: what was seen before it, what it was, and what it was worth.

    Equal `state`s of a group are one; `shared` counts the turns of the group that began in it, this
    one too. A number that is not finite is a string, such as NaN.
    """

    observation: str
    action: str
    reward: float | str
    valid: bool
    episode_advantage: float | str
    step_advantage: float | str | None
    returned: float | str | None
    state: str | None
    shared: int | None


class RolloutOut(Listed):
    """One of the group that was sampled for a step; `index` is its place in it."""

    object: Literal["fine_tuning.job.rollout"]
    created_at: int
    fine_tuning_job_id: str
    step: int
    index: int
    reward: float | str
    success: bool | None
    failure: str | None
    turns: list[TurnOut]


class RolloutGroupOut(BaseModel):
    """What the rollouts of a step came to, by their places in the group."""

    step: int
    rewards: list[float | str]


class RolloutsOut(ListOut[RolloutOut]):
    """A page of rollouts, and every step that there are any of, the newest first."""

    steps: list[RolloutGroupOut]


class AttemptOut(BaseModel):
    """One worker's try at a job; `outcome` is null while it runs.

    succeeded, failed and cancelled end the job; after interrupted, paused, killed (its run was) and
    lost (its worker was) another attempt carries on from the last checkpoint.
    """

    object: Literal["fine_tuning.job.attempt"]
    number: int
    worker: str
    started_at: int
    ended_at: int | None
    first_step: int | None
    last_step: int | None
    outcome: str | None
    reason: str | None


class AttemptsOut(BaseModel):
    object: Literal["list"]
    data: list[AttemptOut]


class AdapterFileOut(BaseModel):
    """A file in an adapter's archive."""

    name: str
    bytes: int


class AdapterFilesOut(BaseModel):
    object: Literal["list"]
    data: list[AdapterFileOut]


class Series(BaseModel):
    """One metric over optimizer steps; a value that is not finite is a string, such as NaN."""

    name: str
    agg: Literal["raw", "minmax"]
    points: list[list[float | str]] = Field(
        description="raw: [step, value]; minmax: [first step, min, max, mean] of each bucket"
    )


class MetricsOut(BaseModel):
    """Series by name. train_loss is measured where the gradient is: at the perturbed weights under
    MGPO. valid_loss is measured at the clean weights."""

    object: Literal["list"]
    data: list[Series]


def job_out(job: Job, queue: QueueOut | None = None) -> JobOut:
    """Show a row on the wire."""
    spec = TrainSpec.model_validate(job.spec).model_dump(mode="json")
    return JobOut(
        id=job.id,
        object="fine_tuning.job",
        created_at=int(job.created_at.timestamp()),
        finished_at=int(job.finished_at.timestamp()) if job.finished_at else None,
        estimated_finish=_estimated_finish(job),
        model=job.model,
        task=spec["task"],
        fine_tuned_model=job.fine_tuned_model,
        organization_id=job.organization_id,
        status=job.status,
        training_file=job.training_file_id,
        validation_file=job.validation_file_id,
        result_files=[job.result_file_id] if job.result_file_id else [],
        trained_tokens=job.trained_tokens,
        error=_error(job),
        hyperparameters=job.hyperparameters,
        method=job.method,
        seed=spec["seed"],
        metadata=job.user_metadata,
        integrations=job.integrations or [],
        suffix=job.suffix,
        priority=job.priority,
        attempt=job.attempt,
        progress=ProgressOut(step=job.step, total_steps=job.total_steps),
        queue=queue,
        peft=spec["peft"],
        perturbation=spec["perturbation"],
        training=spec["training"],
        evaluation=spec["evaluation"],
        resources=spec["resources"],
        budget=spec["budget"],
    )


def event_out(event: JobEvent | Row[Any]) -> EventOut:
    """Show an event, or its columns, on the wire."""
    return EventOut(
        id=event.id,
        object="fine_tuning.job.event",
        created_at=int(event.created_at.timestamp()),
        level=event.level,
        message=event.message,
        type=event.type,
        data=event.data,
    )


def checkpoint_out(checkpoint: Checkpoint) -> CheckpointOut:
    """Show a checkpoint on the wire."""
    return CheckpointOut(
        id=checkpoint.id,
        object="fine_tuning.job.checkpoint",
        created_at=int(checkpoint.created_at.timestamp()),
        fine_tuned_model_checkpoint=checkpoint.model,
        fine_tuning_job_id=checkpoint.job_id,
        metrics=checkpoint.metrics,
        step_number=checkpoint.step,
    )


def rollout_out(rollout: Rollout) -> RolloutOut:
    """Show a rollout on the wire."""
    return RolloutOut(
        id=rollout.id,
        object="fine_tuning.job.rollout",
        created_at=int(rollout.sampled_at.timestamp()),
        fine_tuning_job_id=rollout.job_id,
        step=rollout.step,
        index=rollout.index,
        reward=number_out(rollout.reward),
        success=rollout.success,
        failure=rollout.failure,
        turns=[TurnOut.model_validate(turn) for turn in rollout.turns],
    )


def rollouts_out(page: Page[Rollout], groups: list[Group]) -> RolloutsOut:
    """Show a page of rollouts on the wire."""
    listed = list_out([rollout_out(each) for each in page.data], has_more=page.has_more)
    steps = [
        RolloutGroupOut(step=group.step, rewards=[number_out(each) for each in group.rewards])
        for group in groups
    ]
    return RolloutsOut(**dict(listed), steps=steps)


def adapter_files_out(entries: list[Entry]) -> AdapterFilesOut:
    """Show what an adapter's archive holds."""
    files = [AdapterFileOut(name=entry.name, bytes=entry.size) for entry in entries]
    return AdapterFilesOut(object="list", data=files)


def attempt_out(attempt: Attempt) -> AttemptOut:
    """Show an attempt on the wire."""
    return AttemptOut(
        object="fine_tuning.job.attempt",
        number=attempt.number,
        worker=attempt.worker,
        started_at=int(attempt.started_at.timestamp()),
        ended_at=int(attempt.ended_at.timestamp()) if attempt.ended_at else None,
        first_step=attempt.first_step,
        last_step=attempt.last_step,
        outcome=attempt.outcome,
        reason=attempt.reason,
    )


def number_out(value: float) -> float | str:
    """Show a measured value; JSON has no NaN, so those that are not finite become their names."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _error(job: Job) -> ErrorOut | None:
    if job.error_code is None:
        return None
    return ErrorOut(code=job.error_code, message=job.error_message or "", param=job.error_param)


def _estimated_finish(job: Job) -> int | None:
    """Extrapolate a running job from its pace so far."""
    if job.status != "running" or not job.step or job.started_at is None or job.progress_at is None:
        return None
    pace = (job.progress_at - job.started_at) / job.step
    return int((job.started_at + pace * job.total_steps).timestamp())
