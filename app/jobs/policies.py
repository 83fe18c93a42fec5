"""How a policy learns: what is left open in a request, decided; what contradicts, refused."""

from app.environments.arguments import check_arguments
from app.errors import InvalidRequest
from app.graders.service import check_grader
from app.jobs.methods import EnvironmentIn, Reinforcement
from app.jobs.spec import EnvironmentSpec, PeftMethod, ReinforcementSpec, TrainSpec

WHERE = "method.reinforcement"
STEP_DISCOUNT, STEP_WEIGHT, EPISODE_WEIGHT = 0.95, 1.0, 1.0
ANSWER_TOKENS, ACTION_TOKENS = 256, 32
OF_STEPS = ("step_discount", "step_weight", "episode_weight")
NO_SCALE = ("compute_multiplier", "eval_samples", "reasoning_effort")
# Of a step: they are sampled at once, in an environment with a process for each.
MOST_ROLLOUTS, MOST_AGENTS = 1024, 256
NO_POLICY: dict[PeftMethod, str] = {
    "lora_ga": "LoRA-GA starts along the gradient of answers, and there are none yet",
}


def check_policy(asked: Reinforcement) -> None:
    """Refuse what says nothing beside the rest.

    Raises:
        InvalidRequest: the message says why; the parameter is named.
    """
    if (asked.grader is None) == (asked.environment is None):
        raise InvalidRequest(
            "Rewards come from a grader or from an environment: name one of them.",
            param=f"{WHERE}.grader",
        )
    if asked.algorithm == "gigpo" and asked.environment is None:
        raise InvalidRequest(
            "gigpo compares the steps of episodes, and an answer to a grader is a single one: use"
            " grpo, or an environment.",
            param=f"{WHERE}.algorithm",
        )
    for name in OF_STEPS if asked.algorithm == "grpo" else ():
        if getattr(asked, name) is not None:
            raise InvalidRequest(f"{name} belongs to gigpo, not to grpo.", param=f"{WHERE}.{name}")
    for name in NO_SCALE:
        if getattr(asked.hyperparameters, name) not in (None, "default"):
            raise InvalidRequest(
                f"{name} is not offered: group_size and max_completion_tokens say what a step"
                " takes.",
                param=f"{WHERE}.hyperparameters.{name}",
            )


def resolve_policy(asked: Reinforcement, *, context_length: int) -> ReinforcementSpec:
    """Return how a policy learns, with nothing left to decide.

    Raises:
        InvalidRequest: the grader cannot run here, or the environment's arguments are none.
    """
    gigpo = asked.algorithm == "gigpo"
    acts = asked.environment is not None
    usual = ACTION_TOKENS if acts else min(ANSWER_TOKENS, max(1, context_length // 2))
    return ReinforcementSpec(
        algorithm=asked.algorithm,
        grader=_grader(asked),
        environment=_environment(asked.environment) if asked.environment else None,
        group_size=asked.group_size,
        temperature=asked.temperature,
        max_completion_tokens=asked.max_completion_tokens or usual,
        kl=asked.kl,
        clip=asked.clip,
        updates_per_rollout=asked.updates_per_rollout,
        normalization=asked.normalization,
        step_discount=_given(asked.step_discount, STEP_DISCOUNT) if gigpo else None,
        step_weight=_given(asked.step_weight, STEP_WEIGHT) if gigpo else None,
        episode_weight=_given(asked.episode_weight, EPISODE_WEIGHT) if gigpo else None,
    )


def check_learned(spec: TrainSpec) -> None:
    """Refuse what a policy cannot learn with.

    Raises:
        InvalidRequest: the message says why; the parameter is named.
    """
    if reason := NO_POLICY.get(spec.peft.method):
        message = f"{spec.peft.method} does not go with reinforcement: {reason}."
        raise InvalidRequest(message, param="peft.method")
    if spec.resources.gpus > 1 or spec.resources.sharded:
        raise InvalidRequest(
            "A policy trains on one device: its rollouts are not shared out yet.",
            param="resources.gpus" if spec.resources.gpus > 1 else "resources.zero_stage",
        )
    if spec.training.early_stopping is not None:
        raise InvalidRequest(
            "A policy has no valid_loss to stop by; watch valid_reward_mean instead.",
            param="training.early_stopping",
        )
    if spec.evaluation.sharpness is not None:
        raise InvalidRequest(
            "Sharpness is that of a loss on given answers, and a policy is given none.",
            param="evaluation.sharpness",
        )
    policy = spec.reinforcement
    if policy is not None:
        _check_size(policy, spec.training.batch_size * policy.group_size)
    if policy is not None and policy.max_completion_tokens >= spec.training.max_length:
        raise InvalidRequest(
            f"max_completion_tokens {policy.max_completion_tokens} leaves no room for a prompt"
            f" within training.max_length {spec.training.max_length}.",
            param=f"{WHERE}.max_completion_tokens",
        )


def _check_size(policy: ReinforcementSpec, rollouts: int) -> None:
    most = MOST_ROLLOUTS if policy.environment is None else MOST_AGENTS
    if rollouts > most:
        raise InvalidRequest(
            f"batch_size times group_size is {rollouts}: at most {most} rollouts are sampled at"
            " once" + (", each with a process of its own." if policy.environment else "."),
            param=f"{WHERE}.hyperparameters.batch_size",
        )


def _grader(asked: Reinforcement) -> dict[str, object] | None:
    if asked.grader is None:
        return None
    raw = asked.grader.model_dump(mode="json", exclude_none=True)
    check_grader(raw, param=f"{WHERE}.grader")
    return raw


def _environment(asked: EnvironmentIn) -> EnvironmentSpec:
    return EnvironmentSpec(
        name=asked.name,
        args=check_arguments(asked.name, asked.args),
        max_turns=asked.max_turns,
        timeout_s=asked.timeout_s,
    )


def _given(value: float | None, usual: float) -> float:
    return usual if value is None else value
