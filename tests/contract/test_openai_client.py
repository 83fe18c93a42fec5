"""The official client, pointed here, does the main job with no special code."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.conftest import Api, running_api
from tests.e2e.jobs import create, wait
from tests.factories import jsonl

pytestmark = pytest.mark.usefixtures("worker")
API_MEMORY_BYTES = 135_000_000


@pytest.fixture(scope="module")
def files(client: openai.OpenAI) -> tuple[str, str]:
    train = client.files.create(file=("train.jsonl", jsonl(24)), purpose="fine-tune")
    valid = client.files.create(file=("valid.jsonl", jsonl(10)), purpose="fine-tune")
    return train.id, valid.id


@pytest.fixture(scope="module")
def job(client: openai.OpenAI, files: tuple[str, str], worker: Path) -> Iterator[FineTuningJob]:
    """A job that has succeeded."""
    train, valid = files
    created = create(
        client,
        train,
        validation_file=valid,
        suffix="contract",
        metadata={"team": "search"},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 4}},
        },
        training={"checkpoint_steps": 3, "eval_steps": 3},
    )
    ended = wait(client, created.id)
    assert ended.status == "succeeded", (ended.error, worker.read_text()[-3000:])
    yield ended


def test_a_file_comes_back_as_it_was_sent(client: openai.OpenAI, files: tuple[str, str]):
    file = client.files.retrieve(files[0])

    assert (file.purpose, file.filename, file.status) == ("fine-tune", "train.jsonl", "processed")
    assert client.files.content(files[0]).read() == jsonl(24)
    assert files[0] in [listed.id for listed in client.files.list(purpose="fine-tune")]


def test_a_finished_job_has_all_that_the_client_knows(job: FineTuningJob):
    assert job.fine_tuned_model is not None
    assert (
        job.fine_tuned_model.startswith("ft:tiny-llama:") and ":contract:" in job.fine_tuned_model
    )
    assert job.finished_at is not None and job.finished_at >= job.created_at
    assert job.trained_tokens is not None and job.trained_tokens > 0
    assert job.seed == 7 and job.metadata == {"team": "search"}
    assert job.hyperparameters.n_epochs == 1 and job.hyperparameters.batch_size == 4
    assert job.method is not None and job.method.type == "supervised"


def test_events_tell_the_story_newest_first(client: openai.OpenAI, job: FineTuningJob):
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))  # the client pages

    messages = [event.message for event in events]
    assert messages[0] == "The job has successfully completed"
    assert messages[1] == "New fine-tuned model created"
    assert messages[-1] == "Created fine-tuning job"
    assert len({event.id for event in events}) == len(events) > 6
    steps = [event for event in events if event.message.startswith("Step 6/6")]
    assert steps[0].type == "metrics" and isinstance(steps[0].data, dict)
    assert steps[0].data["step"] == 6 and steps[0].data["train_loss"] > 0


def test_checkpoints_are_models_with_metrics(client: openai.OpenAI, job: FineTuningJob):
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))

    assert [checkpoint.step_number for checkpoint in checkpoints] == [6, 3]
    assert checkpoints[0].metrics.valid_loss is not None
    assert checkpoints[0].fine_tuned_model_checkpoint.endswith(":ckpt-step-6")


def test_the_results_are_a_csv_with_empty_cells_between_evaluations(
    client: openai.OpenAI, job: FineTuningJob
):
    text = client.files.content(job.result_files[0]).text

    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0])[:5] == [
        "step",
        "train_loss",
        "train_accuracy",
        "valid_loss",
        "valid_mean_token_accuracy",
    ]
    assert {"grad_norm", "learning_rate", "perturbation_norm_max"} <= set(list(rows[0])[5:])
    assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4", "5", "6"]
    assert [row["step"] for row in rows if row["valid_loss"]] == ["0", "3", "6"]


def test_models_list_the_bases_and_what_was_trained(client: openai.OpenAI, job: FineTuningJob):
    names = [model.id for model in client.models.list()]

    assert "tiny-llama" in names and job.fine_tuned_model in names
    assert client.models.retrieve(str(job.fine_tuned_model)).id == job.fine_tuned_model


def test_jobs_are_walked_page_by_page(client: openai.OpenAI, job: FineTuningJob):
    ids = [listed.id for listed in client.fine_tuning.jobs.list(limit=1)]

    assert job.id in ids and len(ids) == len(set(ids))


def test_errors_are_the_clients_own_classes(client: openai.OpenAI, api: Api):
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-none")
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("x.jsonl", b"not json\n" * 10), purpose="fine-tune")
    with pytest.raises(openai.AuthenticationError), api.openai("sk-wrong") as wrong:
        wrong.models.list()

    assert caught.value.code == "invalid_file" and "line 1" in str(caught.value)


def test_the_adapter_comes_whole_in_ranges_and_not_twice(http: httpx.Client, job: FineTuningJob):
    path = f"/fine_tuning/jobs/{job.id}/adapter"

    head = http.head(path)
    whole = http.get(path)
    size = len(whole.content)
    middle = http.get(path, headers={"Range": "bytes=1000-1999"})
    tail = http.get(path, headers={"Range": "bytes=-500"})
    beyond = http.get(path, headers={"Range": f"bytes={size}-"})
    known = http.get(path, headers={"If-None-Match": whole.headers["etag"]})

    assert head.headers["content-length"] == whole.headers["content-length"] == str(size)
    assert head.content == b"" and head.headers["etag"] == whole.headers["etag"]
    assert (middle.status_code, middle.content) == (206, whole.content[1000:2000])
    assert middle.headers["content-range"] == f"bytes 1000-1999/{size}"
    assert tail.content == whole.content[-500:]
    assert beyond.status_code == 416 and beyond.json()["error"]["code"] == "range_not_satisfiable"
    assert known.status_code == 304


def test_the_log_of_a_run_can_be_read(http: httpx.Client, job: FineTuningJob):
    answer = http.get(f"/fine_tuning/jobs/{job.id}/logs")

    assert answer.headers["content-type"].startswith("text/plain")
    assert "grad_norm" in answer.text


def test_the_service_is_ready_with_its_worker(api: Api):
    answer = httpx.get(f"{api.url}/readyz")

    assert answer.status_code == 200
    assert answer.json() == {"database": True, "broker": True, "workers": 1}


def test_the_api_stays_small(api: Api, http: httpx.Client, job: FineTuningJob, tmp_path: Path):
    key = http.headers["authorization"].removeprefix("Bearer ")
    with running_api(api.settings, tmp_path / "api.log") as fresh, fresh.http(key) as client:
        for path in ("", f"/{job.id}", f"/{job.id}/events", f"/{job.id}/metrics"):
            assert client.get(f"/fine_tuning/jobs{path}").status_code == 200
        assert client.get(f"/fine_tuning/jobs/{job.id}/adapter").status_code == 200

        assert psutil.Process(fresh.pid).memory_info().rss < API_MEMORY_BYTES
