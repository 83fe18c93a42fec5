"""What cannot be combined: refused at submit, with the reason."""

from app.errors import InvalidRequest
from app.jobs.policies import check_learned, check_policy
from app.jobs.schemas import CreateJob, PeftIn
from app.jobs.spec import Method, PeftMethod, Task, TrainSpec
from app.models.catalog import BaseModel

NO_PLAIN_FACTORS: dict[PeftMethod, str] = {
    "dora": "DoRA normalizes the merged weight, which the noise would have to go through",
    "adalora": "AdaLoRA prunes directions, which the noise would bring back",
    "full": "full fine-tuning has no low-rank update to weigh the noise by",
}


def check_asked(body: CreateJob) -> None:
    """Refuse fields that say nothing beside the others.

    Raises:
        InvalidRequest: the message says why; the parameter is named.
    """
    if policy := body.policy():
        check_policy(policy)
    if body.peft.source is not None:
        _only_source(body.peft)
    if body.peft.lr_ratio is not None and body.peft.method != "lora_plus":
        raise InvalidRequest(
            f"lr_ratio belongs to the method lora_plus, not to {body.peft.method}.",
            param="peft.lr_ratio",
        )
    if body.validation_file is None:
        _only_without_validation(body)
    unused = {"r", "alpha", "dropout", "target_modules"} & body.peft.model_fields_set
    if body.peft.method == "full" and unused:
        name = min(unused)
        raise InvalidRequest(
            f"The method full trains every weight: {name} says nothing.", param=f"peft.{name}"
        )


PREFERENCE = "preference"
TASK_FORMATS: dict[Task, tuple[str, ...]] = {
    "causal": ("chat", "prompt_completion", "text", PREFERENCE),
    "seq2seq": ("prompt_completion",),
    "classification": ("classification",),
}
PROMPTS, EPISODES = ("prompt_only", "chat"), ("episode",)
# What a base learns from by one method or another.
LEARNED_FORMATS = TASK_FORMATS | {"causal": (*TASK_FORMATS["causal"], "prompt_only", "episode")}


def check_formats(base: BaseModel, body: CreateJob, train: str | None, valid: str | None) -> None:
    """Refuse files whose rows do not suit the base model and the method, or each other.

    Raises:
        InvalidRequest: the message says which rows would.
    """
    suited = TASK_FORMATS[base.task]
    method, policy = body.chosen_method(), body.policy()
    if method != "supervised":
        _only_causal(base, method)
    if method == "dpo":
        _only(train, (PREFERENCE,), f"{method} learns from preference rows")
    elif policy is not None and policy.environment is not None:
        _only(train, EPISODES, "In an environment a model plays episodes: one row says which")
    elif policy is not None:
        _only(train, PROMPTS, "A grader judges answers to prompt_only or chat rows")
    elif train not in suited:
        raise InvalidRequest(
            f"{base.name} is a {base.task} model and learns from {' or '.join(suited)} rows;"
            f" the file holds {train} rows.",
            param="training_file",
        )
    elif train == PREFERENCE:
        raise InvalidRequest(
            "Supervised jobs learn from one answer a row; the file holds preference rows: ask for"
            ' method.type "dpo".',
            param="training_file",
        )
    if valid not in (None, train):
        raise InvalidRequest(
            f"The training file holds {train} rows and the validation file {valid} rows.",
            param="validation_file",
        )


def _only_causal(base: BaseModel, method: Method) -> None:
    if base.task != "causal":
        raise InvalidRequest(
            f"{method} needs a causal model, which writes; {base.name} is a {base.task} model.",
            param="method.type",
        )


def _only(train: str | None, suited: tuple[str, ...], why: str) -> None:
    if train not in suited:
        raise InvalidRequest(
            f"{why}; the file holds {train} rows: send others, or ask for another method.type.",
            param="training_file",
        )


NO_SHARDS: dict[PeftMethod, str] = {
    "adalora": "AdaLoRA weighs each gradient right after the step, when DeepSpeed has freed it",
    "lora_pro": "LoRA-Pro projects a module's gradients, which DeepSpeed has cut into flat shards",
}


def check_resolved(spec: TrainSpec) -> None:
    """Refuse what does not work together.

    Raises:
        InvalidRequest: the message says why; the parameter is named.
    """
    sharding = NO_SHARDS.get(spec.peft.method)
    if sharding and spec.resources.zero_stage is not None:
        raise InvalidRequest(
            f"{spec.peft.method} does not go with zero_stage: {sharding}. Leave zero_stage out.",
            param="resources.zero_stage",
        )
    if spec.method != "supervised":
        _only_what_is_scored(spec)
    if spec.method == "reinforcement":
        check_learned(spec)
    reason = NO_PLAIN_FACTORS.get(spec.peft.method)
    if reason and spec.perturbation.type in ("random", "ggpo"):
        raise InvalidRequest(
            f"The perturbation {spec.perturbation.type} does not go with {spec.peft.method}:"
            f" {reason}. Use mgpo or none.",
            param="perturbation.type",
        )


def _only_what_is_scored(spec: TrainSpec) -> None:
    if spec.peft.dropout:
        raise InvalidRequest(
            f"{spec.method} goes by differences of log-probabilities, in which dropout would be"
            " noise: leave peft.dropout out.",
            param="peft.dropout",
        )
    if any(name.rpartition(".")[2] == "lm_head" for name in spec.peft.target_modules):
        raise InvalidRequest(
            f"{spec.method} reads the output layer's own weights, past an adapter on it: leave"
            " lm_head out.",
            param="peft.target_modules",
        )


def _only_without_validation(body: CreateJob) -> None:
    asked = {
        "training.early_stopping": body.training.early_stopping,
        "evaluation.sharpness": body.evaluation.sharpness,
    }
    for name, value in asked.items():
        if value is not None:
            raise InvalidRequest(f"{name} needs a validation_file to measure on.", param=name)


def _only_source(asked: PeftIn) -> None:
    others = asked.model_fields_set - {"source"}
    if others:
        name = min(others)
        raise InvalidRequest(
            f"peft.from brings method, rank, alpha and the rest with it; leave out {name}.",
            param=f"peft.{name}",
        )
