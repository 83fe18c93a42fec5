"""A dry run: what a job would take, and nothing of it is left behind."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, text

from app.db import Database
from app.ids import new_id, token
from app.jobs.states import JobStatus
from app.keys.service import Scope
from app.settings import ApiSettings
from app.tables import Attempt, JobEvent, Metric, Worker
from tests.app.records import run, run_now
from tests.app.test_jobs_api import JOBS, submit
from tests.conftest import Api
from tests.factories import jsonl, to_jsonl

TABLES = ("jobs", "job_events", "submissions", "audit_events", "attempts", "metrics")
GIB = 1 << 30


def dry_run(http: httpx.Client, training_file: str, **body: Any) -> httpx.Response:
    asked = {"model": "tiny-llama", "training_file": training_file} | body
    return http.post(JOBS, params={"dry_run": "true"}, json=asked)


def estimated(http: httpx.Client, training_file: str, **body: Any) -> dict[str, Any]:
    answer = dry_run(http, training_file, **body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def uploaded(http: httpx.Client, data: bytes) -> str:
    file = {"file": ("train.jsonl", data)}
    made = http.post("/files", files=file, data={"purpose": "fine-tune"}).json()
    return str(made["id"])


# nothing is made


def test_a_dry_run_leaves_nothing_behind(
    http: httpx.Client, training_file: str, settings: ApiSettings
):
    def count() -> list[int]:
        counts = ", ".join(f"(SELECT count(*) FROM {table})" for table in TABLES)
        return list(run_now(settings, f"SELECT ARRAY[{counts}]"))

    before = count()

    found = estimated(http, training_file)

    assert found["object"] == "fine_tuning.estimate"
    assert count() == before


def test_a_key_that_named_a_dry_run_is_free_for_the_job(http: httpx.Client, training_file: str):
    headers = {"Idempotency-Key": new_id("key-")}
    body = {"model": "tiny-llama", "training_file": training_file}

    asked = http.post(JOBS, params={"dry_run": "true"}, json=body | {"seed": 1}, headers=headers)
    made = http.post(JOBS, json=body | {"seed": 2}, headers=headers)

    assert asked.status_code == 200 and made.status_code == 200, made.text
    assert made.json()["object"] == "fine_tuning.job"


def test_whoever_may_not_submit_may_not_ask_either(api: Api, organization: str, training_file: str):
    with api.http(api.key(organization, Scope.READ)) as reader:
        answer = dry_run(reader, training_file)

    assert answer.status_code == 403


# the spec


def test_the_spec_is_the_one_that_the_job_gets(http: httpx.Client, training_file: str):
    body = {"suffix": "mine", "peft": {"r": 4}, "training": {"max_steps": 7}, "priority": 3}

    spec = estimated(http, training_file, **body)["spec"]
    job = submit(http, training_file, **body).json()

    assert spec["seed"] is None
    assert {name: job[name] for name in spec if name != "seed"} == {
        name: value for name, value in spec.items() if name != "seed"
    }


@pytest.mark.parametrize(
    "body",
    [
        {"peft": {"rank": 8}},
        {"model": "no-such-model"},
        {"training": {"micro_batch_size": 3}},
        {"hyperparameters": {"batch_size": 21}},
        {"resources": {"gpus": 2, "zero_stage": 3}},
        {"peft": {"method": "full", "r": 4}},
        {"peft": {"from": "ft:nobody"}},
        {"method": {"type": "dpo"}},
        {"perturbation": {"type": "none", "rho": 0.1}},
        {"evaluation": {"sharpness": {}}},
        {"validation_file": "file-none"},
        {"model": "tiny-bert"},
    ],
)
def test_what_a_submission_refuses_a_dry_run_refuses_in_the_same_words(
    http: httpx.Client, training_file: str, body: dict[str, Any]
):
    asked, submitted = dry_run(http, training_file, **body), submit(http, training_file, **body)

    assert 400 <= submitted.status_code < 500
    assert (asked.status_code, asked.json()) == (submitted.status_code, submitted.json())


def test_another_tenants_files_are_not_there(stranger: httpx.Client, training_file: str):
    assert dry_run(stranger, training_file).status_code == 404


# steps and tokens


def test_steps_and_tokens_follow_from_the_rows(http: httpx.Client, training_file: str):
    whole = estimated(http, training_file)
    short = estimated(http, training_file, training={"max_length": 16, "max_steps": 2})

    assert (whole["steps"], short["steps"]) == (15, 2)
    assert whole["tokens"]["total"] == 3 * whole["tokens"]["per_epoch"]
    report = http.get(f"/files/{training_file}/report", params={"model": "tiny-llama"}).json()
    assert report["tokens"]["min"] * 20 <= whole["tokens"]["per_epoch"]
    assert whole["tokens"]["per_epoch"] <= report["tokens"]["max"] * 20
    assert short["tokens"]["per_epoch"] == 0 and not short["tokens"]["estimated"]


def test_rows_that_are_left_out_make_no_steps_and_are_told(http: httpx.Client):
    asks = [{"prompt": "x" * (200 if n < 8 else 10), "completion": "yes"} for n in range(20)]
    file_id = uploaded(http, to_jsonl(asks))

    found = estimated(http, file_id, training={"max_length": 100}, hyperparameters={"n_epochs": 1})

    assert found["steps"] == 3  # 12 rows, 4 a step
    assert found["tokens"]["per_epoch"] == 12 * (1 + 10 + 3 + 1)
    assert any("8 rows keep no answer" in each for each in found["warnings"])


def test_a_budget_ends_the_steps_and_the_time(http: httpx.Client, training_file: str):
    budget = {"max_steps": 3, "max_duration_s": 1}

    found = estimated(http, training_file, budget=budget)

    assert found["steps"] == 3
    assert found["time"]["high_s"] == 1
    assert any("budget ends the run" in each for each in found["warnings"])


def test_a_quota_that_is_used_up_is_told(api: Api, settings: ApiSettings):
    org = f"limited-{token(6)}"
    with api.http(api.key(org)) as limited:
        file_id = uploaded(limited, jsonl(20))
        run_now(settings, "UPDATE organizations SET max_queued = 0 WHERE name = :org", org=org)

        found = estimated(limited, file_id)
        refused = submit(limited, file_id)

    assert refused.status_code == 429
    assert refused.json()["error"]["message"] in found["warnings"][0]


# workers and the queue


@pytest.fixture
async def device(db: Database) -> AsyncIterator[str]:
    """A GPU that no job ran on yet, two of which a worker has; 24 GiB each."""
    name = f"GPU of tests {token(8)}"
    hardware = [{"name": name, "memory_bytes": 24 * GIB}] * 2
    devices = {"all": ["0", "1"], "hardware": hardware}
    async with db.transaction() as tx:
        tx.add(Worker(id=name, hostname="box", devices=devices))
    yield name
    async with db.transaction() as tx:
        await tx.execute(delete(Worker).where(Worker.id == name))


def test_without_a_worker_the_verdict_says_so(http: httpx.Client, training_file: str):
    found = estimated(http, training_file)

    assert found["fits"] == {
        "verdict": False,
        "words": "No worker is alive; start one with `basin worker`.",
        "workers": [],
        "advice": [],
    }
    assert found["queue"]["wait_expected_s"] is None
    assert "No worker is alive" in found["queue"]["reason"]


@pytest.mark.usefixtures("empty_queue")
async def test_a_free_worker_means_no_wait_and_a_verdict(
    http: httpx.Client, training_file: str, device: str
):
    found = estimated(http, training_file, resources={"gpus": 2})
    too_many = estimated(
        http, training_file, resources={"gpus": 3}, hyperparameters={"batch_size": 6}
    )

    assert found["fits"]["verdict"] and "It fits" in found["fits"]["words"]
    assert found["fits"]["workers"][0]["device"] == found["basis"]["device"] == device
    assert (found["queue"]["ahead"], found["queue"]["wait_expected_s"]) == (0, 0)
    assert not too_many["fits"]["verdict"]
    assert "3 devices" in too_many["fits"]["words"]
    assert too_many["queue"]["wait_expected_s"] is None
    assert "waits until there is a larger one" in too_many["queue"]["reason"]


@pytest.mark.usefixtures("empty_queue")
async def test_what_does_not_fit_is_advised_on_with_numbers(
    http: httpx.Client, db: Database, training_file: str, device: str
):
    small = '{"name": "small", "memory_bytes": 614000000}'
    statement = "UPDATE workers SET devices = CAST(:devices AS jsonb) WHERE id = :id"
    devices = f'{{"all": ["0", "1"], "hardware": [{small}, {small}]}}'
    await run(db, statement, devices=devices, id=device)

    found = estimated(http, training_file, peft={"r": 512})

    (of_length, *_) = [
        each for each in found["fits"]["advice"] if "training.max_length" in each["change"]
    ]
    assert not found["fits"]["verdict"]
    assert "It does not fit" in found["fits"]["words"]
    assert of_length["expected_bytes"] <= found["memory"]["expected_bytes"]
    assert {name for each in found["fits"]["advice"] for name in each["change"]} >= {
        "training.micro_batch_size",
        "training.gradient_checkpointing",
    }


@pytest.mark.usefixtures("empty_queue", "device")
async def test_it_would_stand_where_the_job_then_stands(
    http: httpx.Client, stranger: httpx.Client, training_file: str
):
    theirs = uploaded(stranger, jsonl(20))
    for priority in (0, 0, 5):
        assert submit(stranger, theirs, priority=priority).status_code == 200
    assert submit(http, training_file).status_code == 200

    asked = [estimated(http, training_file, priority=number)["queue"]["ahead"] for number in (0, 9)]
    made = submit(http, training_file).json()["queue"]["ahead"]

    assert asked == [made, 0]


# calibration


async def ran(
    db: Database, job: dict[str, Any], device: str, *, step_s: float, peak: float
) -> None:
    """Leave what a run of a job leaves: steps of a length, an evaluation of three seconds."""
    began = datetime.now(UTC) - timedelta(hours=1)
    steps = job["progress"]["total_steps"]
    started = {
        "total_steps": steps,
        "first_step": 1,
        "trainable_parameters": 8192,
        "total_parameters": 43360,
        "train_rows": 20,
        "device": device,
        "precision": "bf16",
    }
    async with db.transaction() as tx:
        tx.add(JobEvent(id=new_id("e-"), job_id=job["id"], level="info", type="message",
                        message="Training started at step 1", data=started))  # fmt: skip
        ended = began + timedelta(seconds=30 + steps * step_s)
        tx.add(Attempt(job_id=job["id"], number=1, worker="w", started_at=began, ended_at=ended))
        for step in range(1, steps + 1):
            told = {"job_id": job["id"], "step": step, "seq": step, "attempt": 1}
            at = began + timedelta(seconds=10 + step * step_s)
            tx.add(Metric(**told, name="train_loss", value=1.0, ts=at))
            tx.add(Metric(**told, name="memory_bytes", value=peak, ts=at))
        done = "UPDATE jobs SET status = :status, attempt = 1, step = total_steps,"
        done += " trained_tokens = 1000, started_at = now(), finished_at = now() WHERE id = :id"
        await tx.execute(text(done), {"status": JobStatus.SUCCEEDED, "id": job["id"]})


@pytest.mark.usefixtures("empty_queue")
async def test_finished_jobs_calibrate_time_and_memory(
    http: httpx.Client, db: Database, training_file: str, device: str
):
    guessed = estimated(http, training_file)
    for step_s in (1.0, 2.0, 3.0):
        job = submit(http, training_file).json()
        await ran(db, job, device, step_s=step_s, peak=2.0 * GIB)

    found = estimated(http, training_file)

    assert guessed["basis"]["finished_jobs"] == 0
    assert "no finished job" in guessed["basis"]["words"]
    assert found["basis"]["finished_jobs"] == 3
    assert "3 finished jobs with tiny-llama on GPU of tests" in found["basis"]["words"]
    assert found["time"]["step_s"] == pytest.approx(2.0)
    assert found["time"]["expected_s"] == pytest.approx(30 + 15 * 2.0, rel=0.01)
    assert found["time"]["low_s"] < 30 + 15 * 1.0 < 30 + 15 * 3.0 < found["time"]["high_s"]
    assert found["memory"]["expected_bytes"] == pytest.approx(2 * GIB, rel=0.01)


@pytest.mark.usefixtures("empty_queue")
async def test_jobs_of_another_device_do_not_calibrate(
    http: httpx.Client, db: Database, training_file: str, device: str
):
    job = submit(http, training_file).json()
    await ran(db, job, f"another {device}", step_s=9.0, peak=9.0 * GIB)

    assert estimated(http, training_file)["basis"]["finished_jobs"] == 0


@pytest.mark.usefixtures("empty_queue")
async def test_an_attempt_that_was_not_the_only_one_does_not_calibrate(
    http: httpx.Client, db: Database, training_file: str, device: str
):
    job = submit(http, training_file).json()
    await ran(db, job, device, step_s=9.0, peak=9.0 * GIB)
    await run(db, "UPDATE jobs SET attempt = 2 WHERE id = :id", id=job["id"])

    assert estimated(http, training_file)["basis"]["finished_jobs"] == 0
