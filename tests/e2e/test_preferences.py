"""Supervised first, then preferences on what came of it, through the whole service."""

import io
import tarfile
from typing import Any

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.jobs import create, wait
from tests.factories import jsonl, preference_row, to_jsonl

pytestmark = pytest.mark.usefixtures("worker")
TRAINING = {"learning_rate": 1e-2, "eval_steps": 3, "checkpoint_steps": 3}


@pytest.fixture(scope="module")
def ended(client: openai.OpenAI) -> tuple[FineTuningJob, FineTuningJob]:
    """A supervised job, and one that goes on from it and learns from pairs."""
    chats = client.files.create(file=("t.jsonl", jsonl(24)), purpose="fine-tune")
    rows = [preference_row(number) for number in range(30)]
    pairs, held_out = (
        client.files.create(file=("p.jsonl", to_jsonl(some)), purpose="fine-tune")
        for some in (rows[:20], rows[20:])
    )
    short = {"n_epochs": 1, "batch_size": 4}
    first = create(client, chats.id, hyperparameters=short, training=TRAINING)
    first = wait(client, first.id)
    second = create(
        client,
        pairs.id,
        validation_file=held_out.id,
        method={"type": "dpo", "dpo": {"hyperparameters": short | {"n_epochs": 2}}},
        peft={"from": first.fine_tuned_model},
        training=TRAINING,
    )
    return first, wait(client, second.id)


def test_the_second_job_prefers_what_it_was_shown(
    http: httpx.Client, ended: tuple[FineTuningJob, FineTuningJob]
):
    _, job = ended

    metrics = http.get(f"/fine_tuning/jobs/{job.id}/metrics").json()["data"]
    values = {each["name"]: [value for _, value in each["points"]] for each in metrics}
    assert [each.status for each in ended] == ["succeeded", "succeeded"]
    assert values["valid_loss"][0] == pytest.approx(0.6931, abs=1e-4)
    assert values["valid_loss"][-1] < 0.6
    assert (values["valid_rewards_accuracy"][0], values["valid_rewards_accuracy"][-1]) == (0.5, 1)
    assert values["train_rewards_margin"][-1] > 0


def test_rewards_are_in_the_results_and_in_the_checkpoints(
    client: openai.OpenAI, ended: tuple[FineTuningJob, FineTuningJob]
):
    _, job = ended

    head, *_ = client.files.content(job.result_files[0]).text.splitlines()
    checkpoint: Any = client.fine_tuning.jobs.checkpoints.list(job.id).data[0].metrics
    assert {"valid_loss", "train_rewards_margin", "valid_rewards_accuracy"} <= {*head.split(",")}
    assert checkpoint.model_extra["valid_rewards_accuracy"] == 1


def test_the_adapter_says_how_it_was_made(
    http: httpx.Client, ended: tuple[FineTuningJob, FineTuningJob]
):
    archive = http.get(f"/fine_tuning/jobs/{ended[1].id}/adapter").content

    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        card = tar.extractfile("README.md")
        assert card and "direct preference optimization" in card.read().decode()
