"""What a run by reinforcement samples reaches its owner, through the whole service."""

from typing import Any

import httpx
import openai
import pytest

from tests.e2e.jobs import create, wait
from tests.factories import to_jsonl

pytestmark = pytest.mark.usefixtures("worker")
STEPS, GROUP = 2, 4
TRAINING = {"learning_rate": 1e-3, "max_length": 256}
GRADER = {
    "type": "number_match",
    "name": "right",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
}
PROMPTS = [
    {"messages": [{"role": "user", "content": f"{number} plus 1?"}], "answer": f"{number + 1}"}
    for number in range(12)
]
EPISODES = [{"episode": {"seed": number}} for number in range(12)]
DOORS = {"environment": {"name": "key-door", "max_turns": 3}, "algorithm": "gigpo"}


def sampled(
    http: httpx.Client, client: openai.OpenAI, rows: list[dict[str, Any]], asked: dict[str, Any]
) -> Any:
    """The rollouts that a short job left."""
    file = client.files.create(file=("rows.jsonl", to_jsonl(rows)), purpose="fine-tune")
    hyperparameters = {"n_epochs": 1, "batch_size": 2}
    common = {"group_size": GROUP, "max_completion_tokens": 8, "hyperparameters": hyperparameters}
    method = {"type": "reinforcement", "reinforcement": common | asked}
    job = create(client, file.id, method=method, training=TRAINING | {"max_steps": STEPS})
    ended = wait(client, job.id)
    assert ended.status == "succeeded", ended.error
    return http.get(f"/fine_tuning/jobs/{job.id}/rollouts").json()


def test_answers_are_shown_with_what_their_grader_said(http: httpx.Client, client: openai.OpenAI):
    page = sampled(http, client, PROMPTS, {"grader": GRADER})

    places = [(each["step"], each["index"]) for each in page["data"]]
    turns = [each["turns"] for each in page["data"]]
    assert places == [(step, index) for step in (2, 1) for index in range(GROUP)]
    assert all(len(each) == 1 and "plus 1?" in each[0]["observation"] for each in turns)
    assert {each["reward"] for each in page["data"]} <= {0.0, 1.0}
    assert [group["step"] for group in page["steps"]] == [2, 1]


def test_episodes_are_shown_turn_by_turn(http: httpx.Client, client: openai.OpenAI):
    page = sampled(http, client, EPISODES, DOORS)

    group = [each for each in page["data"] if each["step"] == 1]
    first = [each["turns"][0] for each in group]
    assert len(group) == GROUP
    assert len({turn["state"] for turn in first}) == 1  # a group begins as one
    assert all(turn["shared"] >= GROUP and turn["step_advantage"] is not None for turn in first)
