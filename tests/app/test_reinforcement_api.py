"""Jobs that learn from rewards, on the wire: what they come to, and what is refused."""

from typing import Any

import httpx
import openai
import pytest

from tests.app.test_estimates_api import estimated, uploaded
from tests.app.test_jobs_api import submit
from tests.factories import jsonl, preference_row, to_jsonl
from tests.worker.trainer.runs import EVEN_ODD

ASKED = [
    {"messages": [{"role": "user", "content": f"{n} + 1?"}], "reference_answer": f"#### {n + 1}"}
    for n in range(20)
]
EPISODES = [{"episode": {"seed": seed}} for seed in range(12)]
GRADER = {
    "type": "number_match",
    "name": "right",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.reference_answer }}",
}
KEY_DOOR = {"name": "key-door", "args": {"width": 4}}


def graded(**more: Any) -> dict[str, Any]:
    return {"type": "reinforcement", "reinforcement": {"grader": GRADER} | more}


def acting(**more: Any) -> dict[str, Any]:
    return {"type": "reinforcement", "reinforcement": {"environment": KEY_DOOR} | more}


@pytest.fixture(scope="module")
def prompts(http: httpx.Client) -> str:
    return uploaded(http, to_jsonl(ASKED))


@pytest.fixture(scope="module")
def episodes(http: httpx.Client) -> str:
    return uploaded(http, to_jsonl(EPISODES))


def test_a_job_with_a_grader_is_resolved_and_shown(client: openai.OpenAI, prompts: str):
    grader = {
        "type": "string_check",
        "name": "says it",
        "input": "{{ sample.output_text }}",
        "operation": "like",
        "reference": "{{ item.reference_answer }}",
    }
    asked = {"grader": grader, "hyperparameters": {"n_epochs": 2, "eval_interval": 5}}
    job = client.fine_tuning.jobs.create(
        model="tiny-llama",
        training_file=prompts,
        validation_file=prompts,
        method={"type": "reinforcement", "reinforcement": asked},  # type: ignore[typeddict-item]
    )
    client.fine_tuning.jobs.cancel(job.id)

    assert job.method is not None and job.method.type == "reinforcement"
    told = job.method.reinforcement
    assert told is not None and told.grader.type == "string_check"
    assert told.hyperparameters is not None and told.hyperparameters.n_epochs == 2
    extra = told.model_extra or {}
    assert (extra["algorithm"], extra["group_size"], extra["updates_per_rollout"]) == ("grpo", 8, 1)
    assert extra["environment"] is extra["step_discount"] is None
    training = (job.model_extra or {})["training"]
    assert (training["batch_size"], training["eval_steps"]) == (4, 5)
    assert (job.model_extra or {})["progress"]["total_steps"] == 10


def test_a_job_in_an_environment_is_resolved_and_shown(http: httpx.Client, episodes: str):
    job = submit(http, episodes, method=acting(algorithm="gigpo")).json()

    told = job["method"]["reinforcement"]
    assert told["environment"]["args"] == {"width": 4, "height": 3, "max_steps": 40}
    assert (told["step_discount"], told["step_weight"], told["episode_weight"]) == (0.95, 1.0, 1.0)
    assert told["grader"] is None and told["max_completion_tokens"] == 32
    assert (
        job["training"]["batch_size"] * told["group_size"] % job["training"]["micro_batch_size"]
        == 0
    )


def test_what_is_not_said_follows_from_how_often_rollouts_are_used(
    http: httpx.Client, prompts: str
):
    once = submit(http, prompts, method=graded()).json()
    often = submit(http, prompts, method=graded(updates_per_rollout=4)).json()

    for name in ("eval_steps", "checkpoint_steps"):
        assert often["training"][name] >= 3 * once["training"][name]


def test_answers_of_chat_rows_can_be_graded_by(http: httpx.Client):
    job = submit(http, uploaded(http, jsonl(12)), method=graded())

    assert job.status_code == 200, job.text


@pytest.mark.parametrize(
    ("rows", "body", "param", "why"),
    [
        (ASKED, {}, "training_file", "prompt_only"),
        (ASKED, {"method": {"type": "dpo"}}, "training_file", "preference rows"),
        (ASKED, {"method": acting()}, "training_file", "one row says which"),
        (EPISODES, {"method": graded()}, "training_file", "A grader judges"),
        (EPISODES, {}, "training_file", "episode"),
        (
            EVEN_ODD,
            {"method": graded(), "model": "tiny-t5"},
            "method.type",
            "needs a causal model",
        ),
        (
            [preference_row(number) for number in range(10)],
            {"method": graded()},
            "training_file",
            "preference rows",
        ),
        (
            ASKED,
            {"method": {"type": "reinforcement"}},
            "method.reinforcement.grader",
            "name one of them",
        ),
        (
            ASKED,
            {"method": graded(environment=KEY_DOOR)},
            "method.reinforcement.grader",
            "name one of them",
        ),
        (
            ASKED,
            {"method": graded(algorithm="gigpo")},
            "method.reinforcement.algorithm",
            "a single one",
        ),
        (
            EPISODES,
            {"method": acting(step_weight=0.5)},
            "method.reinforcement.step_weight",
            "belongs to gigpo",
        ),
        (
            ASKED,
            {"method": graded(grader=GRADER | {"input": "{{ answer }}"})},
            "method.reinforcement.grader.input",
            "neither item nor sample",
        ),
        (
            ASKED,
            {"method": graded(grader={"type": "python", "name": "x", "source": "1"})},
            "method.reinforcement.grader.type",
            "stranger's program",
        ),
        (
            ASKED,
            {"method": graded(hyperparameters={"compute_multiplier": 2})},
            "method.reinforcement.hyperparameters.compute_multiplier",
            "group_size",
        ),
        (
            EPISODES,
            {"method": acting(environment={"name": "no-such-world"})},
            "method.reinforcement.environment.name",
            "key-door",
        ),
        (
            EPISODES,
            {"method": acting(environment={"name": "key-door", "args": {"width": 99}})},
            "method.reinforcement.environment.args.width",
            "less than or equal to 15",
        ),
        (
            EPISODES,
            {"method": acting(environment={"name": "key-door", "args": {"colour": 1}})},
            "method.reinforcement.environment.args.colour",
            "Unexpected",
        ),
        (
            ASKED,
            {"method": graded(max_completion_tokens=128), "training": {"max_length": 128}},
            "method.reinforcement.max_completion_tokens",
            "no room for a prompt",
        ),
        (
            EPISODES,
            {"method": acting(group_size=256, hyperparameters={"batch_size": 12})},
            "method.reinforcement.hyperparameters.batch_size",
            "at most 256 rollouts",
        ),
        (
            ASKED,
            {"method": graded(), "training": {"micro_batch_size": 5}},
            "training.micro_batch_size",
            "times group_size 8",
        ),
        (
            ASKED,
            {"method": graded(), "peft": {"method": "lora_ga"}},
            "peft.method",
            "there are none yet",
        ),
        (ASKED, {"method": graded(), "peft": {"dropout": 0.1}}, "peft.dropout", "noise"),
        (ASKED, {"method": graded(), "resources": {"gpus": 2}}, "resources.gpus", "one device"),
        (
            ASKED,
            {"method": graded(), "resources": {"zero_stage": 2}},
            "resources.zero_stage",
            "one device",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_reason(
    http: httpx.Client, rows: list[dict[str, Any]], body: dict[str, Any], param: str, why: str
):
    refused = submit(http, uploaded(http, to_jsonl(rows)), **body)

    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == param
    assert why in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"training": {"early_stopping": {}}}, "training.early_stopping"),
        ({"evaluation": {"sharpness": {}}}, "evaluation.sharpness"),
    ],
)
def test_what_needs_the_loss_of_given_answers_is_refused(
    http: httpx.Client, prompts: str, body: dict[str, Any], param: str
):
    refused = submit(http, prompts, method=graded(), validation_file=prompts, **body)

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_methods_are_not_compared_by_a_loss_that_there_is_not(http: httpx.Client, prompts: str):
    body = {
        "model": "tiny-llama",
        "training_file": prompts,
        "validation_file": prompts,
        "methods": [{"name": "a"}, {"name": "b", "perturbation": {"type": "none"}}],
        "method": graded(),
    }

    refused = http.post("/comparisons", json=body)

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "method.type")


def test_a_dry_run_reckons_the_rollouts_of_a_prompt(http: httpx.Client, prompts: str):
    few = estimated(http, prompts, method=graded(group_size=2))
    many = estimated(http, prompts, method=graded(group_size=16))

    assert few["steps"] == many["steps"]
    assert many["tokens"]["total"] == 8 * few["tokens"]["total"]
    assert many["time"]["expected_s"] > few["time"]["expected_s"]


def test_a_dry_run_reckons_with_what_an_environment_says(http: httpx.Client, episodes: str):
    found = estimated(http, episodes, validation_file=episodes, method=acting())
    short = estimated(http, episodes, method=acting(environment=KEY_DOOR | {"max_turns": 1}))

    assert found["steps"] == 9 and found["tokens"]["estimated"]
    assert 0 < short["tokens"]["total"] < found["tokens"]["total"]
    assert found["memory"]["expected_bytes"] > short["memory"]["expected_bytes"] > 0


def test_a_dry_run_reckons_with_the_reference_and_with_what_is_sampled_at_once(
    http: httpx.Client, prompts: str
):
    few = estimated(http, prompts, method=graded(group_size=2, kl=0))["memory"]["modelled"]
    many = estimated(http, prompts, method=graded(group_size=16))["memory"]["modelled"]

    assert few["reference"] == 0 < many["reference"] == many["trained"]
    assert many["rollouts"] == 8 * few["rollouts"] > 0
