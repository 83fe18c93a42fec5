"""How a job learns, on the wire: from answers, from preferences, or from rewards."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, JsonValue

from app.graders.schemas import Grader
from app.schemas import AUTO, Asked, Count, Factor


class Hyperparameters(Asked):
    """OpenAI's three; "auto" is resolved at submit."""

    batch_size: Annotated[Annotated[int, Field(ge=1, le=4096)] | None, AUTO] = None
    # A smaller one would leave no learning rate that a number can hold.
    learning_rate_multiplier: Annotated[Annotated[FiniteFloat, Field(ge=1e-12)] | None, AUTO] = None
    n_epochs: Annotated[Annotated[int, Field(ge=1, le=1000)] | None, AUTO] = None


class Supervised(Asked):
    hyperparameters: Hyperparameters = Hyperparameters()


class DpoHyperparameters(Hyperparameters):
    """OpenAI's for direct preference optimization."""

    beta: Annotated[Annotated[FiniteFloat, Field(gt=0, le=2)] | None, AUTO] = Field(
        default=None,
        description="How closely the model keeps to what it starts from; a higher one is"
        " conservative (0.1).",
    )


class Dpo(Asked):
    """Learn from preference rows: make the preferred answer likelier than the other."""

    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class ReinforcementHyperparameters(Hyperparameters):
    """OpenAI's for reinforcement fine-tuning; a batch is so many prompts, each a group of rollouts.

    `eval_interval` is training.eval_steps. The other three are OpenAI's own scales of effort and
    have no meaning here: group_size and max_completion_tokens say what a step takes.
    """

    compute_multiplier: Factor = None
    eval_interval: Count = None
    eval_samples: Count = None
    reasoning_effort: Literal["default", "low", "medium", "high"] | None = None


class EnvironmentIn(Asked):
    """What the model acts in: one that GET /v1/environments lists, with its arguments."""

    name: str = Field(min_length=1, max_length=128)
    args: dict[str, JsonValue] = Field(default={}, max_length=64)
    max_turns: int = Field(default=30, ge=1, le=1000, description="Actions of an episode, at most.")
    timeout_s: FiniteFloat = Field(
        default=60.0, gt=0, le=3600, description="How long an episode waits for its environment."
    )


class Reinforcement(Asked):
    """Learn from the rewards of what the model samples: by a grader, or in an environment.

    For each prompt, or episode, `group_size` rollouts are compared with each other. grpo compares
    them whole; gigpo also compares the steps of a group that began in the same state.
    """

    grader: Grader | None = None
    environment: EnvironmentIn | None = None
    algorithm: Literal["grpo", "gigpo"] = "grpo"
    group_size: int = Field(default=8, ge=2, le=256)
    temperature: FiniteFloat = Field(default=1.0, ge=0.01, le=2)
    max_completion_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1 << 20,
        description="Of an answer (256, or half of the context), or of one action (32).",
    )
    kl: FiniteFloat = Field(
        default=0.01, ge=0, le=10, description="How closely to keep to what the run starts from."
    )
    clip: FiniteFloat = Field(
        default=0.2, gt=0, le=1, description="How far a ratio of probabilities counts."
    )
    updates_per_rollout: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Optimizer steps on the same rollouts; above 1 the ratios are clipped, and"
        " under a perturbation they are off the policy that sampled.",
    )
    normalization: Literal["std", "none"] = Field(
        default="std", description="Whether differences are divided by the group's deviation."
    )
    step_discount: FiniteFloat | None = Field(
        default=None,
        ge=0,
        le=1,
        description="gigpo: of the returns that steps are compared by; 0.95.",
    )
    step_weight: FiniteFloat | None = Field(
        default=None, ge=0, le=100, description="gigpo: of the steps' advantage; 1."
    )
    episode_weight: FiniteFloat | None = Field(
        default=None, ge=0, le=100, description="gigpo: of the episodes' advantage; 1."
    )
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()


class Method(Asked):
    """How to learn; what stands beside the type is not read."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised = Supervised()
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None

    def hyperparameters(self) -> Hyperparameters:
        """Return those of the type."""
        match self.type:
            case "dpo":
                return (self.dpo or Dpo()).hyperparameters
            case "reinforcement":
                return (self.reinforcement or Reinforcement()).hyperparameters
            case _:
                return self.supervised.hyperparameters
