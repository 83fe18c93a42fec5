"""The stability report over HTTP, on metrics as a run leaves them."""

import re
from typing import Any

import httpx
import pytest

from app.jobs.schemas import CreateJob
from tests.app.records import run_now
from tests.app.test_jobs_api import submit
from tests.conftest import Api

FALLING = "1 + 1.5 * exp(-4.0 * step / :steps)"
TURNING = "CASE WHEN step < 400 THEN 2 - step / 500.0 ELSE 1.2 + (step - 400) / 1000.0 END"


def leave(api: Api, job_id: str, name: str, value: str, *, steps: int, every: int = 1) -> None:
    """Leave a metric at each step, its value an SQL expression of `step`, with a little noise."""
    shown = value.replace(":steps", str(steps))
    run_now(
        api.settings,
        "INSERT INTO metrics (job_id, name, step, attempt, seq, value, ts)"
        f" SELECT :job, :name, step, 1, step, ({shown}) * (1 + 0.01 * sin(step * 7919.0)), now()"
        f" FROM generate_series({every}, {steps}, {every}) AS step",
        job=job_id,
        name=name,
    )


def report_of(http: httpx.Client, job_id: str) -> dict[str, Any]:
    answer = http.get(f"/fine_tuning/jobs/{job_id}/report")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture
def job_id(http: httpx.Client, training_file: str) -> str:
    made: str = submit(http, training_file).json()["id"]
    return made


def test_a_job_that_has_not_begun_has_nothing_to_report(http: httpx.Client, job_id: str):
    assert report_of(http, job_id) == {
        "object": "fine_tuning.job.report",
        "job_id": job_id,
        "healthy": True,
        "summary": "0 steps are done; a curve can be judged from 20 on.",
        "findings": [],
    }


def test_a_healthy_run_is_told_to_be_one(api: Api, http: httpx.Client, job_id: str):
    leave(api, job_id, "train_loss", FALLING, steps=300)
    leave(api, job_id, "valid_loss", FALLING, steps=300, every=30)

    report = report_of(http, job_id)

    assert report["healthy"] is True and report["findings"] == []
    assert report["summary"] == "Nothing stands out in 300 steps and 10 evaluations."


def test_without_evaluations_the_report_says_what_it_cannot_see(
    api: Api, http: httpx.Client, job_id: str
):
    leave(api, job_id, "train_loss", FALLING, steps=300)

    assert "validation_file" in report_of(http, job_id)["summary"]


def test_over_fitting_comes_with_its_steps_its_numbers_and_the_knob(
    api: Api, http: httpx.Client, job_id: str
):
    leave(api, job_id, "train_loss", FALLING, steps=1000)
    leave(api, job_id, "valid_loss", TURNING, steps=1000, every=100)

    report = report_of(http, job_id)

    assert report["healthy"] is False
    (finding,) = report["findings"]
    assert (finding["kind"], finding["severity"]) == ("overfitting", "warn")
    assert (finding["first_step"], finding["last_step"]) == (400, 1000)
    assert "lowest at step 400" in finding["evidence"]
    assert "training.early_stopping" in finding["advice"]
    assert "overfitting (warn) at steps 400 to 1000" in report["summary"]


def test_a_loss_that_is_no_number_is_an_error_in_the_report(
    api: Api, http: httpx.Client, job_id: str
):
    leave(api, job_id, "train_loss", FALLING, steps=100)
    leave(api, job_id, "valid_loss", "'NaN'::float8", steps=101, every=101)
    run_now(
        api.settings,
        "UPDATE metrics SET value = 'Infinity' WHERE job_id = :job AND step = 100",
        job=job_id,
    )

    findings = report_of(http, job_id)["findings"]

    seen = [(each["kind"], each["metric"], each["first_step"]) for each in findings]
    assert seen == [("divergence", "train_loss", 100), ("divergence", "valid_loss", 101)]


def test_every_step_and_evaluation_of_a_long_run_is_counted(
    api: Api, http: httpx.Client, job_id: str
):
    leave(api, job_id, "train_loss", FALLING, steps=20_000)
    leave(api, job_id, "valid_loss", FALLING, steps=20_000, every=4)

    summary = report_of(http, job_id)["summary"]

    assert summary == "Nothing stands out in 20000 steps and 5000 evaluations."


def test_one_spike_in_a_hundred_thousand_steps_is_found(api: Api, http: httpx.Client, job_id: str):
    leave(api, job_id, "train_loss", FALLING, steps=100_000)
    run_now(
        api.settings,
        "UPDATE metrics SET value = 9 WHERE job_id = :job AND step = 61234",
        job=job_id,
    )

    (finding,) = report_of(http, job_id)["findings"]

    assert finding["kind"] == "spike"
    assert finding["first_step"] <= 61234 <= finding["last_step"] < finding["first_step"] + 100


PERTURBATIONS = [
    {"type": "mgpo"},
    {"type": "mgpo", "apn": "paper"},
    {"type": "none"},
]


@pytest.mark.parametrize("perturbation", PERTURBATIONS, ids=str)
@pytest.mark.parametrize("peft", [{"method": "lora"}, {"method": "full"}], ids=str)
def test_every_knob_the_report_names_is_a_field_of_a_job(
    api: Api,
    http: httpx.Client,
    training_file: str,
    perturbation: dict[str, Any],
    peft: dict[str, Any],
):
    made = submit(http, training_file, perturbation=perturbation, peft=peft).json()["id"]
    spiky = f"CASE WHEN step = 700 THEN 20 ELSE {TURNING} END"
    leave(api, made, "train_loss", f"({spiky}) + greatest(step - 800, 0) / 50.0", steps=1000)
    bump = "CASE WHEN step BETWEEN 200 AND 500 THEN 3 ELSE 2 - step / 1000.0 END"
    leave(api, made, "valid_loss", bump, steps=1000, every=50)
    leave(api, made, "perturbation_clamped_share", "0.95", steps=1000)

    findings = report_of(http, made)["findings"]

    known = {"spike", "divergence", "second_descent"}
    known |= {"clamped_perturbation"} if perturbation["type"] == "mgpo" else set()
    assert {finding["kind"] for finding in findings} == known
    for finding in findings:
        for knob in re.findall(r"\b[a-z]+\.[a-z_]+\b", finding["advice"]):
            assert is_field(knob), knob


def is_field(knob: str) -> bool:
    part, _, name = knob.partition(".")
    inside = CreateJob.model_fields[part].annotation
    models = [inside, *getattr(inside, "__args__", ())]
    return any(name in getattr(model, "model_fields", {}) for model in models)
