"""T5 and BERT through the whole service, and a job on two devices, on one worker that has two."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from openai.types.fine_tuning import FineTuningJob
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from app.settings import ApiSettings
from app.tars import unpack
from tests.conftest import celery_worker, wait_until
from tests.e2e.jobs import create, wait
from tests.factories import chat_row, to_jsonl
from tests.held import processes_of
from tests.worker.trainer.runs import EVEN_ODD, LABELLED

CHATS = [chat_row(number) for number in range(24)]
ODD = 11  # validation rows that two ranks cannot share evenly
LEARNED = {"valid_loss", "valid_accuracy", "valid_f1", "valid_mcc"}
JOBS: dict[str, dict[str, Any]] = {
    "tiny-t5": {"rows": EVEN_ODD},
    "tiny-bert": {"rows": LABELLED},
    "tiny-llama": {"rows": CHATS, "resources": {"gpus": 2}},
}


@pytest.fixture(scope="module")
def worker(settings: ApiSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A worker with two devices; yields its log."""
    log = tmp_path_factory.mktemp("celery") / "worker.log"
    with celery_worker(settings.model_copy(update={"devices": "cpu,cpu"}), log):
        yield log


@pytest.fixture(scope="module")
def ended(client: openai.OpenAI, worker: Path) -> dict[str, FineTuningJob]:
    """A job on each base, all of them submitted at once."""
    jobs = {base: submit(client, base, **asked) for base, asked in JOBS.items()}
    return {base: wait(client, job.id, timeout_s=240) for base, job in jobs.items()}


def submit(
    client: openai.OpenAI, base: str, rows: list[dict[str, Any]], **asked: Any
) -> FineTuningJob:
    files = client.files
    train = files.create(file=("t.jsonl", to_jsonl(rows)), purpose="fine-tune")
    valid = files.create(file=("v.jsonl", to_jsonl(rows[:ODD])), purpose="fine-tune")
    return create(
        client,
        train.id,
        model=base,
        validation_file=valid.id,
        hyperparameters={"n_epochs": 2, "batch_size": 4},
        training={"learning_rate": 1e-2, "eval_steps": 6},
        **asked,
    )


def series(http: httpx.Client, job: FineTuningJob) -> dict[str, list[list[Any]]]:
    """Every metric of a job: its name → (step, value) pairs."""
    answer = http.get(f"/fine_tuning/jobs/{job.id}/metrics").json()
    return {found["name"]: found["points"] for found in answer["data"]}


def download(http: httpx.Client, job: FineTuningJob, folder: Path) -> Path:
    archive = folder / "adapter.tar"
    archive.write_bytes(http.get(f"/fine_tuning/jobs/{job.id}/adapter").content)
    unpack(archive, folder)
    return folder


@pytest.mark.parametrize("base", JOBS)
def test_a_job_of_every_kind_succeeds_and_shows_what_it_learned(
    base: str, ended: dict[str, FineTuningJob], http: httpx.Client, worker: Path
):
    job = ended[base]

    assert job.status == "succeeded", (job.error, worker.read_text()[-3000:])
    found = series(http, job)
    steps = [step for step, _ in found["train_loss"]]
    (_, first), *_, (_, last) = found["valid_loss"]
    assert steps == list(range(1, 13)) and last < first
    assert (found.keys() >= LEARNED) == (base != "tiny-llama")
    assert ("valid_exact_match" in found) == (base == "tiny-t5")


def test_a_t5_adapter_loads_by_plain_peft_and_lowers_the_loss(
    ended: dict[str, FineTuningJob], http: httpx.Client, models_dir: Path, tmp_path: Path
):
    folder = download(http, ended["tiny-t5"], tmp_path)
    base = AutoModelForSeq2SeqLM.from_pretrained(models_dir / "tiny-t5").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    row = tokenizer(EVEN_ODD[3]["prompt"], text_target="odd", return_tensors="pt")

    with torch.no_grad():
        before = float(base(**row).loss)
        after = float(PeftModel.from_pretrained(base, str(folder)).eval()(**row).loss)

    assert after < before


def test_a_bert_adapter_loads_by_plain_peft_and_scores_as_the_job_said(
    ended: dict[str, FineTuningJob], http: httpx.Client, models_dir: Path, tmp_path: Path
):
    folder = download(http, ended["tiny-bert"], tmp_path)
    base = AutoModelForSequenceClassification.from_pretrained(
        models_dir / "tiny-bert", num_labels=2
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = LABELLED[:ODD]
    batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")

    with torch.no_grad():
        logits = PeftModel.from_pretrained(base, str(folder)).eval()(**batch).logits

    labels = torch.tensor([row["label"] for row in rows])
    said = series(http, ended["tiny-bert"])["valid_accuracy"][-1][1]
    assert float((logits.argmax(dim=1) == labels).float().mean()) == pytest.approx(said)


def test_a_job_on_two_devices_leaves_an_adapter_and_no_process(
    ended: dict[str, FineTuningJob],
    http: httpx.Client,
    worker: Path,
    models_dir: Path,
    tmp_path: Path,
):
    job = ended["tiny-llama"]

    folder = download(http, job, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(models_dir / "tiny-llama")
    PeftModel.from_pretrained(base, str(folder))

    claimed = [line for line in worker.read_text().splitlines() if "job.claimed" in line]
    assert any(job.id in line and line.count("cpu") == 2 for line in claimed)
    weights = load_file(folder / "adapter_model.safetensors")
    assert any(weight.any() for name, weight in weights.items() if "lora_B" in name)
    wait_until(lambda: not processes_of(job.id), timeout_s=5)
