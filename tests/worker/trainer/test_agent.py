"""Agents: what GiGPO's runs tell and show, that they learn, and that they resume exactly."""

from pathlib import Path
from typing import Any

import pytest

from app.jobs.spec import EvalDone, RolloutSampled, StepDone
from tests.worker.trainer.runs import adapter_bytes, make_run, of_type, train_here
from tests.worker.trainer.test_policy import assert_goes_on_alike
from worker.rundir import RunDir
from worker.trainer.faults import RunError

KEY_DOOR = {
    "name": "key-door",
    "args": {"width": 3, "height": 2, "max_steps": 8},
    "max_turns": 8,
    "timeout_s": 30.0,
}
GIGPO: dict[str, Any] = {
    "algorithm": "gigpo",
    "grader": None,
    "environment": KEY_DOOR,
    "group_size": 4,
    "temperature": 1.0,
    "max_completion_tokens": 6,
    "kl": 0.02,
    "clip": 0.2,
    "updates_per_rollout": 1,
    "normalization": "std",
    "step_discount": 0.95,
    "step_weight": 1.0,
    "episode_weight": 1.0,
}
EPISODES = [{"episode": {"seed": seed}} for seed in range(6)]


def make(path: Path, models_dir: Path, **changes: Any) -> RunDir:
    policy = GIGPO | changes.pop("policy", {})
    training = {"batch_size": 2, "micro_batch_size": 4, "max_length": 1024, "n_epochs": 2}
    training |= changes.pop("training", {})
    changes = {"rows": EPISODES, "total_steps": 6} | changes
    return make_run(
        path,
        models_dir / changes.pop("model", "tiny-llama"),
        method="reinforcement",
        reinforcement=policy,
        training=training,
        **changes,
    )


def test_each_step_tells_what_agents_are_watched_by(models_dir: Path, tmp_path: Path):
    run = train_here(make(tmp_path / "run", models_dir, valid=EPISODES[:3]))

    told = of_type(run, StepDone)[-1].metrics
    assert told.keys() >= {
        "train_reward_mean",
        "train_success_rate",
        "train_episode_turns",
        "train_invalid_actions",
        "train_failed_episodes",
        "train_shared_states",
        "rollout_seconds",
        "advantage_seconds",
        "step_seconds",
    }
    assert told["train_episode_turns"] <= 8 and told["train_failed_episodes"] == 0.0
    assert told["train_invalid_actions"] > 0.9  # of an untrained model
    assert told["train_shared_states"] > 0.9  # nothing moves, so all stay where they began
    held_out = of_type(run, EvalDone)[-1].metrics
    assert held_out["valid_success_rate"] == 0.0 and "valid_loss" not in held_out


def test_a_group_is_shown_turn_by_turn_with_both_advantages(models_dir: Path, tmp_path: Path):
    run = train_here(make(tmp_path / "run", models_dir, total_steps=1))

    group = of_type(run, RolloutSampled)
    assert [(each.step, each.index) for each in group] == [(1, index) for index in range(4)]
    first = {each.turns[0].state for each in group}
    assert len(first) == 1
    for each in group:
        assert each.success is False and each.failure is None
        assert each.reward == pytest.approx(sum(turn.reward for turn in each.turns))
        for turn in each.turns:
            assert turn.observation.startswith("key ")
            assert turn.step_advantage is not None and turn.returned is not None
            assert turn.shared is not None and turn.shared >= 1


def test_grpo_shows_no_advantage_of_steps(models_dir: Path, tmp_path: Path):
    of_steps = {"step_discount": None, "step_weight": None, "episode_weight": None}
    run = train_here(
        make(tmp_path / "run", models_dir, total_steps=1, policy={"algorithm": "grpo"} | of_steps)
    )

    turns = [turn for each in of_type(run, RolloutSampled) for turn in each.turns]
    assert turns and all(turn.step_advantage is turn.returned is None for turn in turns)


def test_without_the_step_part_gigpo_is_grpo(models_dir: Path, tmp_path: Path):
    of_steps = {"step_discount": None, "step_weight": None, "episode_weight": None}
    grpo = make(tmp_path / "grpo", models_dir, policy={"algorithm": "grpo"} | of_steps)
    gigpo = make(tmp_path / "gigpo", models_dir, policy={"step_weight": 0.0})
    with_steps = make(tmp_path / "steps", models_dir)

    adapters = [adapter_bytes(train_here(run)) for run in (grpo, gigpo, with_steps)]

    assert adapters[0] == adapters[1] != adapters[2]


@pytest.mark.parametrize("step", [2, 5])
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
):
    changes: dict[str, Any] = {"valid": EPISODES[:2], "perturbation": {"type": "mgpo"}}
    whole = train_here(make(tmp_path / "whole", models_dir, **changes))
    halved = make(tmp_path / "halved", models_dir, **changes)

    assert_goes_on_alike(halved, whole, step, monkeypatch)


def test_episodes_that_all_begin_too_long_end_the_run_with_what_to_do(
    models_dir: Path, tmp_path: Path
):
    with pytest.raises(RunError, match="No episode leaves room for an action") as raised:
        train_here(make(tmp_path / "run", models_dir, training={"max_length": 64}))

    assert raised.value.param == "training.max_length"


def test_an_environment_that_is_not_there_ends_the_run_with_what_to_do(
    models_dir: Path, tmp_path: Path
):
    missing = KEY_DOOR | {"name": "no-such-world"}

    with pytest.raises(RunError, match="no-such-world") as raised:
        train_here(make(tmp_path / "run", models_dir, policy={"environment": missing}))

    assert raised.value.param == "method.reinforcement.environment"
