"""The task of a base model: told from its configuration, shown, and asked of the files."""

from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from app.models.catalog import base_models, task_of
from app.settings import Settings
from tests.app.test_jobs_api import submit
from tests.factories import jsonl, to_jsonl

ROWS: dict[str, bytes] = {
    "chat": jsonl(12),
    "prompt_completion": to_jsonl([{"prompt": "a", "completion": "b"}] * 12),
    "text": to_jsonl([{"text": "a"}] * 12),
    "classification": to_jsonl([{"text": "a", "label": n % 2} for n in range(12)]),
}
SUITED = {
    "tiny-llama": ("causal", {"chat", "prompt_completion", "text"}),
    "tiny-t5": ("seq2seq", {"prompt_completion"}),
    "tiny-bert": ("classification", {"classification"}),
}


@pytest.fixture(scope="module")
def files(http: httpx.Client) -> dict[str, str]:
    def upload(name: str) -> str:
        sent = {"file": (f"{name}.jsonl", ROWS[name])}
        answer = http.post("/files", files=sent, data={"purpose": "fine-tune"})
        return str(answer.json()["id"])

    return {name: upload(name) for name in ROWS}


@pytest.mark.parametrize("model", SUITED)
def test_models_and_jobs_show_their_task(http: httpx.Client, files: dict[str, str], model: str):
    task, formats = SUITED[model]

    job = submit(http, files[min(formats)], model=model).json()

    assert http.get(f"/models/{model}").json()["task"] == job["task"] == task


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("model", SUITED)
def test_a_job_takes_the_rows_that_suit_its_model(
    http: httpx.Client, files: dict[str, str], model: str, rows: str
):
    answer = submit(http, files[rows], model=model)

    if rows in SUITED[model][1]:
        assert answer.status_code == 200
    else:
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "training_file")
        assert f"the file holds {rows} rows" in error["message"]


def test_both_files_have_one_format(http: httpx.Client, files: dict[str, str]):
    answer = submit(http, files["chat"], validation_file=files["text"])

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "validation_file")


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "causal"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "causal"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "classification"),
        ({"model_type": "new", "architectures": ["NewForMaskedLM"]}, "classification"),
        (
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
            "classification",
        ),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "seq2seq"),
        ({"model_type": "whatever", "is_encoder_decoder": True}, "seq2seq"),
        ({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}, "causal"),
        ({"architectures": None}, "causal"),
        ({}, "causal"),
    ],
)
def test_the_task_follows_the_architecture(config: dict[str, Any], task: str):
    assert task_of(config) == task


def settings(hub_models: str) -> Settings:
    return Settings(database_url="x", redis_url="x", hub_models=hub_models)


def test_the_operator_writes_the_task_of_a_hub_model():
    told = settings("org/a, org/b@v2:seq2seq, org/c:classification")

    offered = list(base_models(None, told.hub_revisions, told.hub_tasks))

    assert [(base.name, base.revision, base.task) for base in offered] == [
        ("org/a", None, "causal"),
        ("org/b", "v2", "seq2seq"),
        ("org/c", None, "classification"),
    ]


def test_a_task_there_is_not_is_refused_at_the_start():
    with pytest.raises(ValidationError, match="not 'poetry'"):
        settings("org/a:poetry")
