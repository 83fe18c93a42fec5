"""A policy's specification in TRL's words, and what its trainer is made of beside a model."""

import time
from contextlib import ExitStack
from typing import Any

from app.graders.schemas import grader_adapter
from app.jobs.spec import ReinforcementSpec, TrainSpec, Warned
from worker.environments.base import EnvironmentUnavailable
from worker.environments.hosts import Hosts
from worker.rundir import RunDir
from worker.trainer.faults import RunError

OFF_POLICY = (
    "updates_per_rollout is above 1: the later updates compare log-probabilities at the perturbed"
    " weights with those of the clean ones that sampled, so ratios move by the perturbation, too"
)


def check(spec: TrainSpec, rows: int) -> None:
    """Refuse fewer rows than make a batch of rollouts.

    Raises:
        RunError: there are.
    """
    if spec.reinforcement is not None and rows < spec.training.batch_size:
        message = (
            f"{rows} prompts are left, fewer than batch_size {spec.training.batch_size}: lower it,"
            " or send more prompts."
        )
        raise RunError("too_few_prompts", message, param="hyperparameters.batch_size")


def arguments(spec: TrainSpec) -> dict[str, Any]:
    """Return what GRPOConfig is told; nothing for a run that learns from no rewards.

    The reference is not told of (`PolicyTrainer`), and an evaluation samples once: it compares
    nothing.
    """
    asked = spec.reinforcement
    if asked is None:
        return {}
    return {
        "max_steps": spec.total_steps,
        "num_generations": asked.group_size,
        "num_generations_eval": 1,
        "num_iterations": asked.updates_per_rollout,
        "max_completion_length": asked.max_completion_tokens,
        "temperature": asked.temperature,
        "epsilon": asked.clip,
        "beta": 0.0,
        "disable_dropout": True,  # what sampled is what is scored
        "scale_rewards": "group" if asked.normalization == "std" else "none",
    }


def options(run: RunDir, spec: TrainSpec, opened: ExitStack, *, limit: int) -> dict[str, Any]:
    """Return what the trainer of a policy takes: its judge, and where it tells of rollouts.

    Args:
        opened: keeps the processes of an environment until the run is over.
        limit: how many tokens a sequence may have.

    Raises:
        RunError: this worker has no such environment.
    """
    asked = spec.reinforcement
    if asked is None:
        return {}
    first = run.latest_checkpoint() is None
    if first and asked.updates_per_rollout > 1 and spec.perturbation.type != "none":
        run.append_event(Warned(at=time.time(), code="off_policy", message=OFF_POLICY))
    shared = {"asked": asked, "tell": run.append_event}
    if asked.environment is None:
        return shared | {"grader": grader_adapter.validate_python(asked.grader)}
    hosts = opened.enter_context(_hosts(run, spec, asked))
    return shared | {"arena": hosts, "instructions": hosts.instructions, "max_length": limit}


def _hosts(run: RunDir, spec: TrainSpec, asked: ReinforcementSpec) -> Hosts:
    environment = asked.environment
    assert environment is not None
    try:
        return Hosts(
            environment.name,
            environment.args,
            slots=spec.training.batch_size * asked.group_size,
            timeout_s=environment.timeout_s,
            inside=run.path,
        )
    except EnvironmentUnavailable as error:
        param = "method.reinforcement.environment"
        raise RunError("environment_unavailable", str(error), param=param) from error
