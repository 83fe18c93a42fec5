"""Reinforcement by a grader: what is asked, what is learned, from where, and how it resumes."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from app.jobs.spec import EvalDone, RolloutSampled, StepDone, Stopped, Warned
from tests.factories import to_jsonl
from tests.worker.trainer.runs import (
    adapter_bytes,
    events,
    make_run,
    of_type,
    stopping_at,
    train_here,
)
from tests.worker.trainer.warm import Warm, warm
from worker.rundir import Placement, RunDir
from worker.trainer.faults import RunError
from worker.trainer.methods import TRAINABLE
from worker.trainer.policy import SHOWN_CHARACTERS, GradedTrainer, positioned
from worker.trainer.prompts import Script, encode_prompts

GRADER = {
    "type": "string_check",
    "name": "has it",
    "input": "{{ sample.output_text }}",
    "operation": "ilike",
    "reference": "{{ item.want }}",
}
POLICY: dict[str, Any] = {
    "algorithm": "grpo",
    "grader": GRADER,
    "environment": None,
    "group_size": 4,
    "temperature": 1.0,
    "max_completion_tokens": 8,
    "kl": 0.05,
    "clip": 0.2,
    "updates_per_rollout": 1,
    "normalization": "std",
}
ROWS = [{"messages": [{"role": "user", "content": f"{n}?"}], "want": "e"} for n in range(12)]
LONG = [{"messages": [{"role": "user", "content": f"{n}" * 70}], "want": "e"} for n in range(9)]
SHORT = {"batch_size": 4, "micro_batch_size": 8, "n_epochs": 2}
METHODS = ["lora", "adalora", "pissa", "full"]


@pytest.fixture(scope="module")
def trainer() -> Iterator[Warm]:
    with warm() as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer(models_dir: Path) -> Any:
    from worker.trainer.model import load_tokenizer

    where = str(models_dir / "tiny-llama")
    return load_tokenizer(Placement(source="folder", location=where, revision=None))


def make(path: Path, models_dir: Path, **changes: Any) -> RunDir:
    policy = POLICY | changes.pop("policy", {})
    training = SHORT | changes.pop("training", {})
    changes = {"rows": ROWS, "total_steps": 6} | changes
    return make_run(
        path,
        models_dir / "tiny-llama",
        method="reinforcement",
        reinforcement=policy,
        training=training,
        **changes,
    )


def series(run: RunDir, name: str) -> list[float]:
    return [event.metrics[name] for event in of_type(run, StepDone)]


def encoded(path: Path, tokenizer: Any, *rows: dict[str, Any], room: int = 100) -> Any:
    path.write_bytes(to_jsonl([*rows]))
    return encode_prompts(path, tokenizer, room=room)


def test_the_answer_of_a_row_is_hidden_from_the_policy_and_told_to_the_grader(
    tokenizer: Any, tmp_path: Path
):
    row = {"messages": [*ROWS[1]["messages"], {"role": "assistant", "content": "four"}]}

    found = encoded(tmp_path / "train.jsonl", tokenizer, row).dataset[0]

    assert found["prompt"] == "<s>User: 1?\nAssistant: "
    assert json.loads(found["item"]) == row


def test_a_prompt_that_leaves_no_room_for_an_answer_is_left_out(tokenizer: Any, tmp_path: Path):
    long = {"messages": [{"role": "user", "content": "?" * 60}], "want": "e"}
    path = tmp_path / "train.jsonl"

    found = encoded(path, tokenizer, ROWS[0], long, room=40)

    assert (found.rows, found.dropped) == (1, 1)
    with pytest.raises(RunError, match="No prompt leaves room"):
        encoded(path, tokenizer, long, room=40)


def test_a_turn_of_a_dialogue_follows_the_template_whether_the_action_ended_or_not(
    tokenizer: Any,
):
    script = Script(tokenizer, "Act.", [tokenizer.eos_token_id])
    opening = script.opening("a door")
    action = tokenizer("open", add_special_tokens=False)["input_ids"]
    ended = [*action, tokenizer.eos_token_id]

    whole = [opening + act + script.answer("it opens", ended=act) for act in (action, ended)]

    assert tokenizer.decode(opening) == "<s>User: Act.\n\na door\nAssistant: "
    texts = {tokenizer.decode(ids) for ids in whole}
    assert texts == {"<s>User: Act.\n\na door\nAssistant: open</s>\nUser: it opens\nAssistant: "}
    assert script.said(ended) == "open"


def test_only_what_ends_a_turn_is_not_written_twice(tokenizer: Any):
    script = Script(tokenizer, "Act.", [tokenizer.eos_token_id])
    beyond = len(tokenizer) + 7  # the rows of a model's vocabulary are often rounded up
    opened = tokenizer("<", add_special_tokens=False)["input_ids"][-1]  # as </s> begins

    assert script.said([beyond]) == ""
    for last in (beyond, opened):
        assert tokenizer.decode(script.answer("it opens", ended=[last])).startswith("</s>")
    after = tokenizer.decode(script.answer("it opens", ended=[tokenizer.eos_token_id]))
    assert not after.startswith("</s>")


def test_a_policy_learns_what_its_grader_likes(models_dir: Path, tmp_path: Path):
    run = make(
        tmp_path / "run",
        models_dir,
        peft={"method": "full"},
        policy={"group_size": 8, "max_completion_tokens": 16, "kl": 0.0},
        training={"batch_size": 4, "micro_batch_size": 32, "n_epochs": 16, "learning_rate": 5e-3},
        total_steps=48,
        valid=ROWS[:8],
    )

    train_here(run)

    rewards = series(run, "train_reward_mean")
    first, last = of_type(run, EvalDone)[0], of_type(run, EvalDone)[-1]
    assert sum(rewards[-8:]) / 8 > 0.6 > 0.3 > sum(rewards[:8]) / 8
    assert last.metrics["valid_reward_mean"] > first.metrics["valid_reward_mean"] + 0.3
    assert "valid_loss" not in last.metrics


def test_each_step_tells_what_reinforcement_is_watched_by(models_dir: Path, tmp_path: Path):
    run = train_here(make(tmp_path / "run", models_dir))

    told = of_type(run, StepDone)[-1].metrics
    assert told.keys() >= {
        "train_reward_mean",
        "train_reward_std",
        "train_kl",
        "train_entropy",
        "train_completion_length",
        "train_clip_share",
        "train_groups_without_signal",
    }
    assert 0 < told["train_completion_length"] <= 8
    assert told["train_entropy"] > 5.0  # it knows nothing of its 260 tokens


def test_a_group_of_each_step_is_shown(models_dir: Path, tmp_path: Path):
    run = train_here(make(tmp_path / "run", models_dir))

    shown = of_type(run, RolloutSampled)
    assert [(each.step, each.index) for each in shown] == [
        (step, index) for step in range(1, 7) for index in range(4)
    ]
    for each in shown:
        (turn,) = each.turns
        assert each.reward == turn.reward == float("e" in turn.action.casefold())
        assert turn.observation.startswith("<s>User: ") and turn.step_advantage is None
    means = dict.fromkeys(range(1, 7), 0.0)
    for each in shown:
        means[each.step] += each.turns[0].episode_advantage
    assert all(abs(total) < 1e-4 for total in means.values())


def test_long_texts_are_cut_to_what_a_line_of_the_events_may_hold(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("worker.trainer.policy.SHOWN_BYTES", 100)
    run = train_here(make(tmp_path / "run", models_dir, rows=LONG, total_steps=1))

    for each in of_type(run, RolloutSampled):
        assert len(each.turns[0].observation) == SHOWN_CHARACTERS[-1]
        assert each.turns[0].observation.endswith("\u2026")


def test_an_answer_that_cannot_be_graded_teaches_nothing_and_is_told_of_once(
    models_dir: Path, tmp_path: Path
):
    rows = [row | {"want": "e" * 200_000} for row in ROWS]

    run = train_here(make(tmp_path / "run", models_dir, rows=rows))

    (warned,) = of_type(run, Warned)
    assert warned.code == "not_graded" and "too long" in warned.message
    assert all("train_reward_mean" not in event.metrics for event in of_type(run, StepDone))


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_is_what_the_run_starts_from(models_dir: Path, tmp_path: Path, method: str):
    run = train_here(
        make(tmp_path / "run", models_dir, peft={"method": method}, perturbation={"type": "mgpo"})
    )

    divergence = series(run, "train_kl")
    assert divergence[0] == pytest.approx(0.0, abs=1e-9)
    assert divergence[-1] > 1e-8


def test_rollouts_are_sampled_at_the_clean_weights(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sampled: list[torch.Tensor] = []
    learned: list[torch.Tensor] = []

    def weights(trainer: Any) -> torch.Tensor:
        trained = [each for each in trainer.model.parameters() if each.requires_grad]
        return torch.cat([each.detach().flatten().clone() for each in trained])

    original = GradedTrainer._generate_single_turn, GradedTrainer._compute_loss

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        sampled.append(weights(self))
        return original[0](self, *args, **kwargs)

    def compute(self: Any, *args: Any, **kwargs: Any) -> Any:
        learned.append(weights(self))
        return original[1](self, *args, **kwargs)

    monkeypatch.setattr(GradedTrainer, "_generate_single_turn", generate)
    monkeypatch.setattr(GradedTrainer, "_compute_loss", compute)
    run = make(
        tmp_path / "run",
        models_dir,
        perturbation={"type": "mgpo", "rho": 0.5},
        policy={"grader": GRADER | {"reference": "a"}},
        training={"micro_batch_size": 16, "checkpoint_steps": 1},
    )

    train_here(run)

    perturbation = series(run, "perturbation_norm_max")
    assert len(sampled) == len(learned) == 6 and max(perturbation) > 0.1
    apart = [float((a - b).norm()) for a, b in zip(sampled, learned, strict=True)]
    assert max(apart) > 0.1
    clean = load_file(run.checkpoint(5) / TRAINABLE)
    kept = torch.cat([tensor.flatten() for tensor in clean.values()])
    assert torch.equal(sampled[5].sort().values, kept.sort().values)


def test_several_updates_of_the_same_rollouts_sample_once_and_clip(
    models_dir: Path, tmp_path: Path
):
    run = train_here(
        make(
            tmp_path / "run",
            models_dir,
            policy={"updates_per_rollout": 3, "clip": 0.01},
            training={"learning_rate": 5e-2, "n_epochs": 2, "max_steps": None},
            total_steps=18,
            perturbation={"type": "none", "rho": None, "beta": None, "norm": None, "apn": None},
        )
    )

    steps = of_type(run, StepDone)
    sampled = [event.step for event in steps if "train_reward_mean" in event.metrics]
    assert len(steps) == 18 and sampled == [1, 4, 7, 10, 13, 16]
    assert {event.step for event in of_type(run, RolloutSampled)} == {*sampled}
    clipped = series(run, "train_clip_share")
    assert clipped[0] == 0.0 and max(clipped) > 0.0
    assert not of_type(run, Warned)


def test_updates_off_the_policy_are_told_of_under_a_perturbation(models_dir: Path, tmp_path: Path):
    run = train_here(
        make(tmp_path / "run", models_dir, policy={"updates_per_rollout": 2}, total_steps=12)
    )

    codes = [event.code for event in of_type(run, Warned)]
    assert codes == ["off_policy"]


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("step", [2, 5])
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updates: int, step: int
):
    changes: dict[str, Any] = {
        "policy": {"updates_per_rollout": updates},
        "training": {"n_epochs": 3 if updates == 1 else 1},
        "total_steps": 9,
        "valid": ROWS[:4],
        "perturbation": {"type": "mgpo"},
    }
    whole = train_here(make(tmp_path / "whole", models_dir, **changes))
    halved = make(tmp_path / "halved", models_dir, **changes)

    assert_goes_on_alike(halved, whole, step, monkeypatch)


def assert_goes_on_alike(
    halved: RunDir, whole: RunDir, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop a run at a step and resume it: it ends as the one that was left alone."""
    with monkeypatch.context() as patch:
        train_here(halved, stopping_at(step, patch))
    assert of_type(halved, Stopped)[-1].step == step
    train_here(halved, threading.Event())

    assert adapter_bytes(halved) == adapter_bytes(whole)
    assert shown(halved) == shown(whole)


def shown(run: RunDir) -> dict[tuple[int, int], Any]:
    """The rollouts by step and place; one that is told again must be the same."""
    found: dict[tuple[int, int], Any] = {}
    for event in events(run):
        if isinstance(event, RolloutSampled):
            told = event.model_dump(exclude={"at"})
            assert found.setdefault((event.step, event.index), told) == told
    return found


@pytest.mark.parametrize("base", ["tiny-llama", "gpt2"])
def test_a_row_is_scored_alike_whatever_it_is_padded_to(models_dir: Path, base: str):
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
    model: Any = (
        GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, **shape))
        if base == "gpt2"
        else AutoModelForCausalLM.from_pretrained(models_dir / base)
    ).eval()
    positioned(model)
    row, padding = torch.tensor([[1, 20, 21, 22]]), torch.zeros(1, 9, dtype=torch.long)

    with torch.no_grad():
        alone = model(input_ids=row, attention_mask=torch.ones_like(row)).logits
        beside = model(
            input_ids=torch.cat([padding, row], dim=1),
            attention_mask=torch.cat([padding, torch.ones_like(row)], dim=1),
        ).logits[:, 9:]

    assert torch.allclose(alone, beside, atol=1e-5)


def test_too_few_prompts_for_a_batch_end_the_run_with_a_reason(models_dir: Path, tmp_path: Path):
    long = [{"messages": [{"role": "user", "content": "?" * 200}], "want": "e"}] * 10

    with pytest.raises(RunError, match="fewer than batch_size 4"):
        train_here(make(tmp_path / "run", models_dir, rows=[*ROWS[:2], *long]))
