"""An estimate and then the run: what can be counted is equal, and the next one is calibrated."""

from typing import Any

import httpx
import openai
import pytest

from tests.app.test_estimates_api import estimated, uploaded
from tests.e2e.jobs import create, wait
from tests.factories import chat_row, jsonl, to_jsonl

pytestmark = pytest.mark.usefixtures("worker")
LONG = {"messages": [{"role": "user", "content": "x" * 300}, *chat_row(1)["messages"][1:]]}


def test_steps_tokens_and_parameters_are_those_of_the_run(
    client: openai.OpenAI, http: httpx.Client
):
    train = uploaded(http, jsonl(22) + to_jsonl([LONG] * 3))  # the last ones keep no answer
    valid = uploaded(http, jsonl(10))
    body: dict[str, Any] = {
        "validation_file": valid,
        "hyperparameters": {"n_epochs": 2, "batch_size": 4},
        "training": {"eval_steps": 4, "checkpoint_steps": 6},
    }
    before = estimated(http, train, **body)

    job = wait(client, create(client, train, **body).id)
    after = estimated(http, train, **body)

    assert job.status == "succeeded"
    events = http.get(f"/fine_tuning/jobs/{job.id}/events", params={"limit": 100}).json()["data"]
    (started,) = [each["data"] for each in events if "device" in each["data"]]
    assert before["steps"] == (job.model_extra or {})["progress"]["step"] == 12
    assert before["tokens"]["total"] == job.trained_tokens
    assert before["memory"]["trainable_parameters"] == started["trainable_parameters"]
    assert after["basis"]["finished_jobs"] > 0 and "tiny-llama on cpu" in after["basis"]["words"]
    attempt = http.get(f"/fine_tuning/jobs/{job.id}/attempts").json()["data"][0]
    lasted_s = attempt["ended_at"] - attempt["started_at"]
    assert after["time"]["low_s"] < lasted_s + 1 and lasted_s - 1 < after["time"]["high_s"]
    assert after["fits"]["verdict"] and after["fits"]["workers"][0]["device"] == "cpu"
