"""Jobs that learn from preferences, on the wire: what they come to, and what is refused."""

from typing import Any

import httpx
import openai
import pytest

from tests.app.test_estimates_api import estimated, uploaded
from tests.app.test_jobs_api import submit
from tests.factories import jsonl, preference_row, to_jsonl
from tests.worker.trainer.runs import EVEN_ODD

PAIRS = to_jsonl([preference_row(number) for number in range(20)])
DPO = {"type": "dpo"}


@pytest.fixture(scope="module")
def pairs(http: httpx.Client) -> str:
    return uploaded(http, PAIRS)


def test_a_preference_job_is_resolved_and_shown(client: openai.OpenAI, pairs: str):
    job = client.fine_tuning.jobs.create(
        model="tiny-llama",
        training_file=pairs,
        validation_file=pairs,
        method={"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "beta": "auto"}}},
    )
    client.fine_tuning.jobs.cancel(job.id)

    assert job.method is not None and job.method.type == "dpo" and job.method.dpo is not None
    told = job.method.dpo.hyperparameters
    assert told is not None and (told.beta, told.n_epochs) == (0.1, 2)
    assert told.learning_rate_multiplier == 1.0
    extra = job.model_extra or {}
    assert extra["training"]["learning_rate"] == 2e-5
    assert extra["training"]["micro_batch_size"] == 4


def test_what_is_asked_of_dpo_holds(http: httpx.Client, pairs: str):
    asked = {"beta": 0.3, "learning_rate_multiplier": 2, "batch_size": 10}

    job = submit(http, pairs, method=DPO | {"dpo": {"hyperparameters": asked}}).json()

    assert job["hyperparameters"] == asked | {"n_epochs": 3}
    assert job["training"]["learning_rate"] == 4e-5


def test_an_early_stop_and_sharpness_are_measured_on_pairs(http: httpx.Client, pairs: str):
    job = submit(
        http,
        pairs,
        method=DPO,
        validation_file=pairs,
        training={"early_stopping": {}},
        evaluation={"sharpness": {}},
    )

    assert job.status_code == 200, job.text


@pytest.mark.parametrize(
    ("rows", "body", "param", "why"),
    [
        (PAIRS, {}, "training_file", 'ask for method.type "dpo"'),
        (jsonl(10), {"method": DPO}, "training_file", "dpo learns from preference rows"),
        (
            to_jsonl(EVEN_ODD),
            {"method": DPO, "model": "tiny-t5"},
            "method.type",
            "tiny-t5 is a seq2seq model",
        ),
        (PAIRS, {"method": DPO, "peft": {"dropout": 0.1}}, "peft.dropout", "would be noise"),
        (
            PAIRS,
            {"method": DPO, "peft": {"target_modules": ["q_proj", "lm_head"]}},
            "peft.target_modules",
            "leave lm_head out",
        ),
        (
            PAIRS,
            {"method": DPO | {"dpo": {"hyperparameters": {"beta": 0}}}},
            "method.dpo.hyperparameters.beta",
            "greater than 0",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_reason(
    http: httpx.Client, rows: bytes, body: dict[str, Any], param: str, why: str
):
    refused = submit(http, uploaded(http, rows), **body)

    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == param
    assert why in refused.json()["error"]["message"]


def test_a_validation_file_of_other_rows_is_refused(
    http: httpx.Client, pairs: str, training_file: str
):
    refused = submit(http, pairs, method=DPO, validation_file=training_file)

    assert refused.json()["error"]["param"] == "validation_file"


def test_a_pair_is_reckoned_as_two_conversations(http: httpx.Client, pairs: str):
    found = estimated(http, pairs, method=DPO)

    assert found["spec"]["method"]["dpo"]["hyperparameters"]["beta"] == 0.1
    assert found["spec"]["hyperparameters"]["beta"] == 0.1
    least = len("User: 1?\nAssistant: so 1\n")
    assert 2 * 20 * least < found["tokens"]["per_epoch"] < 2 * 20 * (least + 6)


def test_methods_are_compared_on_preferences(http: httpx.Client, pairs: str):
    body = {
        "model": "tiny-llama",
        "training_file": pairs,
        "validation_file": pairs,
        "method": DPO | {"dpo": {"hyperparameters": {"beta": 0.2}}},
        "methods": [
            {"name": "LoRA", "perturbation": {"type": "none"}},
            {"name": "LoRA-MGPO"},
        ],
        "seeds": 1,
    }

    made = http.post("/comparisons", json=body)

    assert made.status_code == 200, made.text
    job = http.get(f"/fine_tuning/jobs/{made.json()['jobs'][0]['id']}").json()
    assert job["method"]["dpo"]["hyperparameters"]["beta"] == 0.2
    http.post(f"/comparisons/{made.json()['id']}/cancel")
