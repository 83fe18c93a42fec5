"""What a run is told and what it says: the frozen TrainSpec and the events of a run."""

import math
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    TypeAdapter,
    model_validator,
)

SPEC_VERSION = 1
GRADIENT_BATCHES = 8  # micro-batches that LoRA-GA takes its first gradient from


class Frozen(BaseModel):
    """A value that never changes once made, and refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


PeftMethod = Literal[
    "lora", "rslora", "dora", "adalora", "pissa", "lora_plus", "lora_ga", "lora_pro", "full"
]


# What a base model does, as its architecture says: continue text, turn text into text, or label it.
Task = Literal["causal", "seq2seq", "classification"]


# What it learns from: answers, pairs of answers of which one is preferred, or rewards of its own.
Method = Literal["supervised", "dpo", "reinforcement"]


class PeftSpec(Frozen):
    """Which weights are trained, and how they start.

    `r` is the rank of the adapter; for adalora the mean rank that is left in the end. `lr_ratio` is
    how much faster B learns than A, for lora_plus alone. `source` is the fine-tuned model that the
    run goes on from.
    """

    model_config = ConfigDict(
        validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )

    method: PeftMethod
    r: int = Field(ge=1, le=2048)
    alpha: FiniteFloat = Field(gt=0)
    dropout: FiniteFloat = Field(ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...]
    lr_ratio: FiniteFloat | None = Field(gt=0)
    source: str | None = Field(alias="from")


class DpoSpec(Frozen):
    """Direct preference optimization; a higher `beta` keeps closer to what the run starts from."""

    beta: FiniteFloat = Field(gt=0)


class EnvironmentSpec(Frozen):
    """What an agent acts in: an environment that is installed, and how it is set up.

    `max_turns` and `timeout_s` are the most that an episode may take, of actions and of seconds
    that the environment is waited for.
    """

    name: str
    args: dict[str, JsonValue]
    max_turns: int = Field(ge=1)
    timeout_s: FiniteFloat = Field(gt=0)


class ReinforcementSpec(Frozen):
    """How a policy learns from the rewards of what it samples: by a grader, or in an environment.

    `group_size` rollouts of the same prompt or episode are compared with each other; `kl` weighs
    the divergence from what the run starts from, `clip` bounds the ratio of probabilities, and
    `updates_per_rollout` is how many optimizer steps a batch of rollouts is used for. What is said
    of steps is GiGPO's (arXiv 2505.10978), and null for GRPO.
    """

    algorithm: Literal["grpo", "gigpo"]
    grader: dict[str, JsonValue] | None
    environment: EnvironmentSpec | None
    group_size: int = Field(ge=2)
    temperature: FiniteFloat = Field(gt=0)
    max_completion_tokens: int = Field(ge=1)
    kl: FiniteFloat = Field(ge=0)
    clip: FiniteFloat = Field(gt=0)
    updates_per_rollout: int = Field(ge=1)
    normalization: Literal["std", "none"]
    step_discount: FiniteFloat | None = Field(default=None, ge=0, le=1)
    step_weight: FiniteFloat | None = Field(default=None, ge=0)
    episode_weight: FiniteFloat | None = Field(default=None, ge=0)


PerturbationType = Literal["mgpo", "random", "ggpo", "none"]


class PerturbationSpec(Frozen):
    """Where the gradient is taken: at LoRA-MGPO's look-ahead, under noise, or at the weights.

    What the type does not know is null.
    """

    type: PerturbationType
    rho: FiniteFloat | None = Field(default=None, ge=0)
    beta: FiniteFloat | None = Field(default=None, ge=0, lt=1)
    mu: FiniteFloat | None = Field(default=None, ge=0, lt=1)
    norm: Literal["module", "global"] | None = None
    apn: Literal["relative", "paper", "off"] | None = None
    apn_cap: FiniteFloat | None = Field(default=None, gt=0)
    rho_schedule: Literal["constant", "linear", "cosine"] | None = None
    start_step: int = Field(default=0, ge=0)


class EarlyStoppingSpec(Frozen):
    """End the run after `patience` evaluations without a valid_loss lower by `min_delta`."""

    patience: int = Field(ge=1)
    min_delta: FiniteFloat = Field(ge=0)


class SharpnessSpec(Frozen):
    """How sharpness is measured; `rho` is relative to the norm of what is trained."""

    rho: FiniteFloat = Field(gt=0)
    ascent_steps: int = Field(ge=1)
    directions: int = Field(ge=1)
    batches: int = Field(ge=1)


class EvaluationSpec(Frozen):
    """What is measured on the validation file besides the loss."""

    sharpness: SharpnessSpec | None


class TrainingSpec(Frozen):
    """How long, how fast and in what portions."""

    n_epochs: int = Field(ge=1)
    max_steps: int | None = Field(ge=1)
    batch_size: int = Field(ge=1)
    micro_batch_size: int = Field(ge=1)
    learning_rate: FiniteFloat = Field(gt=0)
    warmup_ratio: FiniteFloat = Field(ge=0, le=1)
    scheduler: Literal["cosine", "linear", "constant"]
    weight_decay: FiniteFloat = Field(ge=0)
    max_grad_norm: FiniteFloat = Field(gt=0)
    max_length: int = Field(ge=8)
    precision: Literal["auto", "bf16", "fp32"]
    gradient_checkpointing: bool
    eval_steps: int = Field(ge=1)
    checkpoint_steps: int = Field(ge=1)
    early_stopping: EarlyStoppingSpec | None


class ResourcesSpec(Frozen):
    """What the run occupies while it trains."""

    gpus: int = Field(ge=1)
    zero_stage: Literal[0, 1, 2] | None
    offload: Literal["optimizer"] | None = None

    @property
    def sharded(self) -> bool:
        """Whether DeepSpeed trains; stage 0 on one device has nothing to share out."""
        return self.zero_stage is not None and (self.gpus, self.zero_stage) != (1, 0)

    @property
    def ranked(self) -> bool:
        """Whether the run is one rank or more under torchrun, not a process by itself."""
        return self.gpus > 1 or self.sharded


class BudgetSpec(Frozen):
    """Where a run ends that could go on: seconds of running, optimizer steps; null is no limit."""

    max_duration_s: int | None = Field(ge=1)
    max_steps: int | None = Field(ge=1)


class DataSpec(Frozen):
    """The training data, by content."""

    train_sha256: str
    train_rows: int
    valid_sha256: str | None
    valid_rows: int


class TrainSpec(Frozen):
    """All a run needs to know, every "auto" resolved: stored on the job, written to the run."""

    version: Literal[1]
    job_id: str
    base_model: str
    task: Task
    method: Method
    dpo: DpoSpec | None = None
    reinforcement: ReinforcementSpec | None = None
    seed: int = Field(ge=0, lt=2**31)
    peft: PeftSpec
    perturbation: PerturbationSpec
    training: TrainingSpec
    evaluation: EvaluationSpec
    resources: ResourcesSpec
    budget: BudgetSpec
    data: DataSpec
    total_steps: int = Field(ge=1)

    @model_validator(mode="after")
    def _method_is_told_of(self) -> "TrainSpec":
        if (self.method == "dpo") != (self.dpo is not None):
            raise ValueError("dpo says how the method dpo learns, and belongs to it alone")
        if (self.method == "reinforcement") != (self.reinforcement is not None):
            raise ValueError("reinforcement says how that method learns, and belongs to it alone")
        return self

    @property
    def conversations(self) -> int:
        """How many a row stands for: a pair has one with each of its answers."""
        return 1 if self.dpo is None else 2

    @property
    def rollouts(self) -> int:
        """How many a policy samples for a row; one where the row is what is learned."""
        return 1 if self.reinforcement is None else self.reinforcement.group_size


def planned_steps(training: TrainingSpec, rows: int, policy: ReinforcementSpec | None) -> int:
    """Return how many optimizer steps a run over so many rows takes."""
    epoch = epoch_steps(training.batch_size, rows, policy)
    return training.max_steps or epoch * training.n_epochs


def epoch_steps(batch_size: int, rows: int, policy: ReinforcementSpec | None) -> int:
    """Return how many optimizer steps an epoch takes.

    A policy's batches are full: what is left over in an epoch may come in the next one.
    """
    if policy is not None:
        return rows // batch_size * policy.updates_per_rollout
    return math.ceil(rows / batch_size)


class Event(Frozen):
    """One line a run says; `at` is unix time in seconds."""

    at: float


class Started(Event):
    """The data is read, the model is loaded, the first step is next."""

    type: Literal["started"] = "started"
    total_steps: int
    first_step: int = Field(description="1, or one past the checkpoint that the run resumes from")
    trainable_parameters: int
    total_parameters: int
    train_rows: int
    device: str
    precision: Literal["bf16", "fp32"]


class StepDone(Event):
    """One optimizer step; metrics are keyed by their public names."""

    type: Literal["step_done"] = "step_done"
    step: int
    epoch: float
    metrics: dict[str, float]


class EvalDone(Event):
    """The validation file was read with the clean weights."""

    type: Literal["eval_done"] = "eval_done"
    step: int
    metrics: dict[str, float]


class CheckpointSaved(Event):
    """A run can resume from this step, and all steps before it are told.

    Its adapter lies complete under `folder`, relative to the run folder, if there is one.
    """

    type: Literal["checkpoint_saved"] = "checkpoint_saved"
    step: int
    folder: str | None
    metrics: dict[str, float]


class Warned(Event):
    """Something the user should know, that stops nothing."""

    type: Literal["warned"] = "warned"
    code: str
    message: str


class Turn(Frozen):
    """One action of a rollout: what was seen before it, what it was, and what it was worth.

    A single answer is a rollout of one turn, and its prompt the observation. `returned` is the
    discounted sum of the rewards from here on; `shared` counts the turns of the group that began in
    the same state, this one too. What only GiGPO knows is null for GRPO.
    """

    observation: str
    action: str
    reward: float
    valid: bool
    episode_advantage: float
    step_advantage: float | None
    returned: float | None
    state: str | None
    shared: int | None


class RolloutSampled(Event):
    """A rollout to look at, of the group that was sampled for this step; long texts are cut."""

    type: Literal["rollout_sampled"] = "rollout_sampled"
    step: int
    index: int = Field(description="Its place in the group, 0 for the first")
    reward: float
    success: bool | None
    failure: str | None = Field(description="Why the environment broke it off, if it did")
    turns: tuple[Turn, ...]


class Finished(Event):
    """The adapter lies complete under adapter/ and was proven to load on the original base."""

    type: Literal["finished"] = "finished"
    step: int
    trained_tokens: int
    metrics: dict[str, float]


class Stopped(Event):
    """The run was asked to stop, saved a checkpoint at this step and can resume from it."""

    type: Literal["stopped"] = "stopped"
    step: int


class Failed(Event):
    """The run cannot go on; the message tells the user what to do."""

    type: Literal["failed"] = "failed"
    code: str
    message: str
    param: str | None = None


TrainEvent = Annotated[
    Started
    | StepDone
    | EvalDone
    | CheckpointSaved
    | RolloutSampled
    | Warned
    | Finished
    | Stopped
    | Failed,
    Field(discriminator="type"),
]
train_event: TypeAdapter[TrainEvent] = TypeAdapter(TrainEvent)
