"""Methods, sources and evaluation on the wire: what is taken, and what is refused with a reason."""

from typing import Any

import httpx
import pytest

from tests.app.test_jobs_api import submit

METHODS = ["lora", "rslora", "dora", "adalora", "pissa", "lora_plus", "lora_ga", "lora_pro", "full"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_paper_is_a_job(http: httpx.Client, training_file: str, method: str):
    job = submit(http, training_file, peft={"method": method}).json()

    assert job["status"] == "queued" and job["peft"]["method"] == method
    assert job["peft"]["lr_ratio"] == (16.0 if method == "lora_plus" else None)


def test_early_stopping_and_sharpness_come_back_resolved(http: httpx.Client, training_file: str):
    job = submit(
        http,
        training_file,
        validation_file=training_file,
        training={"early_stopping": {}},
        evaluation={"sharpness": {"rho": 0.1}},
    ).json()

    assert job["training"]["early_stopping"] == {"patience": 3, "min_delta": 0.0}
    assert job["evaluation"]["sharpness"] == {
        "rho": 0.1,
        "ascent_steps": 3,
        "directions": 8,
        "batches": 4,
    }


@pytest.mark.parametrize(
    ("body", "param", "why"),
    [
        ({"peft": {"method": "magic"}}, "peft.method", "lora"),
        ({"peft": {"method": "lora", "lr_ratio": 4}}, "peft.lr_ratio", "lora_plus"),
        ({"peft": {"method": "full", "r": 8}}, "peft.r", "every weight"),
        ({"peft": {"from": "ft:nobody"}}, "peft.from", "no fine-tuned model"),
        ({"peft": {"from": "ft:x", "r": 4}}, "peft.r", "leave out"),
        ({"training": {"early_stopping": {}}}, "training.early_stopping", "validation_file"),
        ({"evaluation": {"sharpness": {}}}, "evaluation.sharpness", "validation_file"),
        ({"evaluation": {"sharpness": {"rho": 0}}}, "evaluation.sharpness.rho", "greater"),
    ],
)
def test_what_says_nothing_is_refused_with_the_reason(
    http: httpx.Client, training_file: str, body: dict[str, Any], param: str, why: str
):
    answer = submit(http, training_file, **body)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert why in answer.json()["error"]["message"]
