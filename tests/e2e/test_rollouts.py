"""What a run by reinforcement samples reaches its owner, through the whole service."""

import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.jobs import create, wait
from tests.environments import needs_textworld
from tests.factories import make_model_folder, to_jsonl

pytestmark = pytest.mark.usefixtures("worker")
STEPS, GROUP = 2, 4
TRAINING = {"learning_rate": 1e-3, "max_length": 256, "max_steps": STEPS}
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
GAMES = {
    "environment": {
        "name": "text-world",
        "args": {"rooms": 1, "objects": 2, "quest_length": 1},
        "max_turns": 2,
    },
    "algorithm": "gigpo",
    "group_size": 2,
}
DOORS = {"environment": {"name": "key-door", "max_turns": 3}, "algorithm": "gigpo"}


def trained(
    client: openai.OpenAI, rows: list[dict[str, Any]], asked: dict[str, Any], **body: Any
) -> str:
    """A short job, which succeeded."""
    file = client.files.create(file=("rows.jsonl", to_jsonl(rows)), purpose="fine-tune")
    hyperparameters = {"n_epochs": 1, "batch_size": 2}
    common = {"group_size": GROUP, "max_completion_tokens": 8, "hyperparameters": hyperparameters}
    method = {"type": "reinforcement", "reinforcement": common | asked}
    job = create(client, file.id, method=method, **{"training": TRAINING} | body)
    ended = wait(client, job.id)
    assert ended.status == "succeeded", ended.error
    return job.id


def sampled(http: httpx.Client, job_id: str) -> Any:
    """The rollouts that a job left."""
    return http.get(f"/fine_tuning/jobs/{job_id}/rollouts").json()


def test_answers_are_shown_with_what_their_grader_said(http: httpx.Client, client: openai.OpenAI):
    page = sampled(http, trained(client, PROMPTS, {"grader": GRADER}))

    places = [(each["step"], each["index"]) for each in page["data"]]
    turns = [each["turns"] for each in page["data"]]
    assert places == [(step, index) for step in (2, 1) for index in range(GROUP)]
    assert all(len(each) == 1 and "plus 1?" in each[0]["observation"] for each in turns)
    assert {each["reward"] for each in page["data"]} <= {0.0, 1.0}
    assert [group["step"] for group in page["steps"]] == [2, 1]


def test_episodes_are_shown_turn_by_turn(http: httpx.Client, client: openai.OpenAI):
    page = sampled(http, trained(client, EPISODES, DOORS))

    group = [each for each in page["data"] if each["step"] == 1]
    first = [each["turns"][0] for each in group]
    assert len(group) == GROUP
    assert len({turn["state"] for turn in first}) == 1  # a group begins as one
    assert all(turn["shared"] >= GROUP and turn["step_advantage"] is not None for turn in first)


@pytest.fixture
def long_llama(models_dir: Path) -> Iterator[None]:
    """A model that can read what a text adventure says first."""
    make_model_folder(models_dir / "long-llama", context=1024)
    yield
    shutil.rmtree(models_dir / "long-llama")


@pytest.mark.usefixtures("long_llama")
@needs_textworld
def test_a_text_adventure_is_played_and_learned_from(http: httpx.Client, client: openai.OpenAI):
    one_game = [{"episode": {"seed": 1}}] * len(EPISODES)  # making another takes seconds

    job_id = trained(
        client, one_game, GAMES, model="long-llama", training=TRAINING | {"max_length": 1024}
    )
    page = sampled(http, job_id)
    archive = http.get(f"/fine_tuning/jobs/{job_id}/adapter").content

    turns = [turn for each in page["data"] for turn in each["turns"]]
    assert len(turns) == STEPS * 2 * 2  # steps, agents and turns
    assert {each["failure"] for each in page["data"]} == {None}
    assert all("Task: " in each["turns"][0]["observation"] for each in page["data"])
    commands = {turn["observation"].rpartition("Commands: ")[2].split(", ")[0] for turn in turns}
    assert commands == {"close safe"}  # which is all that there is to do
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert "adapter_model.safetensors" in tar.getnames()
