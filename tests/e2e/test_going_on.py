"""A new job goes on from an earlier one's adapter, through the whole service."""

from typing import Any

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.jobs import create, wait
from tests.factories import jsonl

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture(scope="module")
def file(client: openai.OpenAI) -> str:
    return client.files.create(file=("t.jsonl", jsonl(24)), purpose="fine-tune").id


@pytest.fixture(scope="module")
def earlier(client: openai.OpenAI, file: str) -> FineTuningJob:
    """A PiSSA job: its artifact has another rank than was asked for."""
    job = create(client, file, peft={"method": "pissa", "r": 4}, **run(file))
    return wait(client, job.id)


def run(file: str) -> dict[str, Any]:
    return {
        "validation_file": file,
        "hyperparameters": {"n_epochs": 1, "batch_size": 4},
        "training": {"learning_rate": 1e-2, "eval_steps": 3},
    }


def valid_losses(http: httpx.Client, job: FineTuningJob) -> list[float]:
    answer = http.get(f"/fine_tuning/jobs/{job.id}/metrics", params={"name": "valid_loss"})
    return [value for _, value in answer.json()["data"][0]["points"]]


def test_it_starts_where_the_earlier_one_ended(
    client: openai.OpenAI, http: httpx.Client, file: str, earlier: FineTuningJob
):
    job = create(client, file, peft={"from": earlier.fine_tuned_model}, **run(file))
    ended = wait(client, job.id)

    assert (earlier.status, ended.status) == ("succeeded", "succeeded")
    assert valid_losses(http, ended)[0] == pytest.approx(valid_losses(http, earlier)[-1], rel=1e-5)
    assert valid_losses(http, ended)[-1] < valid_losses(http, ended)[0]
    peft: Any = (ended.model_extra or {})["peft"]
    assert (peft["method"], peft["r"], peft["from"]) == ("lora", 8, earlier.fine_tuned_model)


def test_a_checkpoint_can_be_gone_on_from(client: openai.OpenAI, file: str, earlier: FineTuningJob):
    checkpoint = client.fine_tuning.jobs.checkpoints.list(earlier.id).data[-1]

    job = create(client, file, peft={"from": checkpoint.fine_tuned_model_checkpoint}, **run(file))

    assert wait(client, job.id).status == "succeeded"


def test_another_base_is_refused(client: openai.OpenAI, file: str, earlier: FineTuningJob):
    with pytest.raises(openai.BadRequestError, match="trained on tiny-llama"):
        create(
            client, file, model="broken-llama", peft={"from": earlier.fine_tuned_model}, **run(file)
        )
