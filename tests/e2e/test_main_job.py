"""The main job for real: a pretrained model, real rows, the API, Celery and a subprocess."""

import hashlib
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from openai.types.fine_tuning import FineTuningJob
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.tars import unpack
from tests.conftest import SHARED, wait_until
from tests.e2e.jobs import OVER, create, steps_done, wait
from tests.factories import jsonl
from tests.held import processes_of

pytestmark = pytest.mark.usefixtures("worker")
GSM8K = SHARED / "data" / "gsm8k" / "train.chat.jsonl"
STORIES = SHARED / "models" / "stories260K"
METHODS = {"LoRA": {"type": "none"}, "LoRA-MGPO": {"type": "mgpo"}}


@pytest.fixture(scope="module")
def trained(client: openai.OpenAI, worker: Path) -> dict[str, FineTuningJob]:
    """Both methods on 200 rows of grade-school arithmetic, same seed."""
    lines = GSM8K.read_bytes().splitlines(keepends=True)
    train = client.files.create(file=("t.jsonl", b"".join(lines[:200])), purpose="fine-tune")
    valid = client.files.create(file=("v.jsonl", b"".join(lines[200:240])), purpose="fine-tune")
    jobs = {
        title: create(
            client,
            train.id,
            model="stories260K",
            validation_file=valid.id,
            hyperparameters={"n_epochs": 2, "batch_size": 8},
            perturbation=perturbation,
            training={"learning_rate": 5e-3, "eval_steps": 25, "checkpoint_steps": 50},
        )
        for title, perturbation in METHODS.items()
    }
    ended = {title: wait(client, job.id, timeout_s=240) for title, job in jobs.items()}
    assert {job.status for job in ended.values()} == {"succeeded"}, worker.read_text()[-3000:]
    return ended


def series(http: httpx.Client, job: FineTuningJob, name: str) -> list[list[Any]]:
    answer = http.get(f"/fine_tuning/jobs/{job.id}/metrics", params={"name": name})
    points: list[list[Any]] = answer.json()["data"][0]["points"]
    return points


@pytest.mark.shared
@pytest.mark.parametrize("method", METHODS)
def test_the_held_out_loss_falls_by_a_third_and_more(
    method: str, trained: dict[str, FineTuningJob], http: httpx.Client
):
    losses = series(http, trained[method], "valid_loss")

    assert [step for step, _ in losses] == [0, 25, 50]
    assert losses[-1][1] < losses[0][1] * 2 / 3


@pytest.mark.shared
def test_both_methods_start_alike_and_part_after_the_first_step(
    trained: dict[str, FineTuningJob], http: httpx.Client
):
    plain, perturbed = (series(http, trained[method], "train_loss") for method in METHODS)

    assert plain[0] == perturbed[0] and plain[-1] != perturbed[-1]
    assert len(plain) == len(perturbed) == 50


@pytest.mark.shared
@pytest.mark.parametrize("method", METHODS)
def test_the_adapter_downloads_in_ranges_hashes_right_loads_and_generates(
    method: str, trained: dict[str, FineTuningJob], http: httpx.Client, tmp_path: Path
):
    path = f"/fine_tuning/jobs/{trained[method].id}/adapter"
    head = http.head(path)
    size = int(head.headers["content-length"])
    piece = size // 3 + 1
    ranges = [f"bytes={start}-{start + piece - 1}" for start in range(0, size, piece)]

    pieces = [http.get(path, headers={"Range": wanted}).content for wanted in ranges]
    archive = b"".join(pieces)
    packed = tmp_path / "adapter.tar"
    packed.write_bytes(archive)
    unpack(packed, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(STORIES)
    model = PeftModel.from_pretrained(base, str(tmp_path))
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Tom has 3 apples and buys 2. How many?"}],
        add_generation_prompt=True,
        tokenize=False,
    )
    ids = tokenizer(asked, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        made = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)

    assert len(pieces) == 3
    assert f'"{hashlib.sha256(archive).hexdigest()}"' == head.headers["etag"]
    assert made.shape[1] > ids.shape[1]


def long_job(client: openai.OpenAI, rows: int = 24, **body: Any) -> str:
    """Submit a job that takes far longer than a test waits; return its id once it trains."""
    file = client.files.create(file=("t.jsonl", jsonl(rows)), purpose="fine-tune")
    job = create(client, file.id, hyperparameters={"n_epochs": 1000, "batch_size": 4}, **body)
    wait_until(lambda: steps_done(client, job.id) > 0, timeout_s=60)
    return job.id


def test_cancelling_a_running_job_ends_it_and_leaves_no_process(client: openai.OpenAI):
    job_id = long_job(client)
    assert processes_of(job_id)

    client.fine_tuning.jobs.cancel(job_id)
    job = wait(client, job_id, until=OVER, timeout_s=10)

    assert job.status == "cancelled"
    assert processes_of(job_id) == []
    assert client.fine_tuning.jobs.cancel(job_id).status == "cancelled"


def test_a_killed_run_is_tried_again_and_keeps_its_log(client: openai.OpenAI, http: httpx.Client):
    job_id = long_job(client)

    for process in processes_of(job_id):
        process.kill()
    job = wait(client, job_id, until=("queued",), timeout_s=20)
    client.fine_tuning.jobs.cancel(job_id)

    attempt = http.get(f"/fine_tuning/jobs/{job_id}/attempts").json()["data"][0]
    assert attempt["outcome"] == "killed" and "SIGKILL" in attempt["reason"]
    assert "tried again at" in (job.model_extra or {})["queue"]["reason"]
    assert "grad_norm" in http.get(f"/fine_tuning/jobs/{job_id}/logs").text


def test_a_base_that_cannot_be_read_fails_the_job_not_the_worker(
    client: openai.OpenAI, training_file: str
):
    job = wait(client, create(client, training_file, model="broken-llama").id)
    after = wait(client, create(client, training_file, training={"max_steps": 1}).id)

    assert job.status == "failed" and job.error is not None
    assert job.error.code == "base_model_unreadable" and "config.json" in job.error.message
    assert after.status == "succeeded"
