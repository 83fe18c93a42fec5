"""What a comparison is asked with."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, FiniteFloat, WithJsonSchema

from app.jobs.methods import Hyperparameters, Method
from app.jobs.schemas import (
    EvaluationIn,
    PeftIn,
    PerturbationIn,
    ResourcesIn,
    SharpnessIn,
    TrainingIn,
)
from app.schemas import Asked

MOST_SEEDS = 20
Seed = Annotated[int, Field(ge=0, lt=2**31)]
COUNT_OR_LIST = WithJsonSchema(
    {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": MOST_SEEDS},
            {"type": "array", "items": {"type": "integer", "minimum": 0}},
        ]
    }
)


def _numbered(seeds: object) -> object:
    """Turn how many seeds there are into those from 1 on."""
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        return tuple(range(1, min(seeds, MOST_SEEDS + 1) + 1))
    return seeds


class MethodTrainingIn(Asked):
    """What a method may do otherwise than the others in the training loop."""

    learning_rate: FiniteFloat | None = Field(default=None, gt=0, le=1)
    warmup_ratio: FiniteFloat | None = Field(default=None, ge=0, le=1)
    scheduler: Literal["cosine", "linear", "constant"] | None = None
    weight_decay: FiniteFloat | None = Field(default=None, ge=0, le=1)
    max_grad_norm: FiniteFloat | None = Field(default=None, gt=0)
    micro_batch_size: int | None = Field(default=None, ge=1)
    gradient_checkpointing: bool | None = None


class MethodIn(Asked):
    """One of those that are compared; `training` overrides that of all."""

    name: str = Field(min_length=1, max_length=64)
    peft: PeftIn = PeftIn()
    perturbation: PerturbationIn = PerturbationIn()
    training: MethodTrainingIn = MethodTrainingIn()


class ComparedBudgetIn(Asked):
    """What every run gets: so many optimizer steps, or as many forward-backward passes."""

    equal: Literal["steps", "passes"] = "steps"
    max_steps: int | None = Field(
        default=None, ge=1, description="Of each run; that of n_epochs by default."
    )


class CreateComparison(Asked):
    """N methods × S seeds on one base, one file and one order of its rows.

    `seeds` is how many, or which. The first method is what the others are compared with.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "does MGPO help here?",
                "model": "my-llama",
                "training_file": "file-6Jw1…",
                "validation_file": "file-9Qk2…",
                "methods": [
                    {"name": "LoRA", "perturbation": {"type": "none"}},
                    {"name": "LoRA-MGPO", "perturbation": {"type": "mgpo", "rho": 0.05}},
                ],
                "seeds": 5,
                "budget": {"equal": "steps", "max_steps": 300},
            }
        }
    )

    model: str = Field(min_length=1, max_length=256)
    training_file: str = Field(max_length=64)
    validation_file: str = Field(max_length=64)
    methods: tuple[MethodIn, ...] = Field(strict=False, min_length=2, max_length=16)
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_numbered), COUNT_OR_LIST] = Field(
        default=(1, 2, 3), strict=False, min_length=1, max_length=MOST_SEEDS
    )
    budget: ComparedBudgetIn = ComparedBudgetIn()
    training: TrainingIn = TrainingIn()
    method: Method | None = Field(
        default=None, description="How all runs learn; its hyperparameters then stand in it."
    )
    hyperparameters: Hyperparameters = Hyperparameters()
    evaluation: EvaluationIn = EvaluationIn(sharpness=SharpnessIn())
    resources: ResourcesIn = ResourcesIn()
    name: str | None = Field(default=None, min_length=1, max_length=256)
    priority: int = Field(
        default=-10, ge=-100, le=100, description="Of its jobs: behind single jobs by default."
    )
