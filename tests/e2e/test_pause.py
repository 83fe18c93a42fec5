"""A job is paused and goes on later, with the bits of one that was not."""

import hashlib
import io
import tarfile

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from app.settings import ApiSettings
from tests.e2e.jobs import create, wait
from tests.factories import jsonl
from tests.held import hold, let_go_once_asked_to_stop, processes_of
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("worker")
STEPS = 200


@pytest.fixture(scope="module")
def file(client: openai.OpenAI) -> str:
    return client.files.create(file=("t.jsonl", jsonl(24)), purpose="fine-tune").id


def submit(client: openai.OpenAI, file: str) -> FineTuningJob:
    return create(
        client,
        file,
        hyperparameters={"batch_size": 4},
        training={"max_steps": STEPS, "checkpoint_steps": 1000},
    )


def weights(http: httpx.Client, job_id: str) -> str:
    """The hash of the adapter's weights; its card names the job."""

    archive = http.get(f"/fine_tuning/jobs/{job_id}/adapter").content
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = tar.extractfile("adapter_model.safetensors")
        assert found is not None
        return hashlib.sha256(found.read()).hexdigest()


def test_a_paused_job_frees_its_device_and_resumes_exactly(
    client: openai.OpenAI, http: httpx.Client, settings: ApiSettings, file: str
):
    undisturbed = wait(client, submit(client, file).id)
    job_id = submit(client, file).id
    hold(settings.data_dir, job_id, after_step=6)

    client.fine_tuning.jobs.pause(job_id)
    let_go_once_asked_to_stop(job_id)
    paused = wait(client, job_id, until=("paused",), timeout_s=30)
    left = processes_of(job_id)
    client.fine_tuning.jobs.resume(job_id)
    ended = wait(client, job_id)

    step = (paused.model_extra or {})["progress"]["step"]
    assert not left and 5 < step < STEPS
    assert (undisturbed.status, ended.status) == ("succeeded", "succeeded")
    assert weights(http, job_id) == weights(http, undisturbed.id)
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job_id)]
    assert {"The job was paused", "The job waits again"} <= set(messages)


def test_a_cancel_overtakes_a_pause_and_leaves_no_process(
    client: openai.OpenAI, settings: ApiSettings, file: str
):
    job_id = submit(client, file).id
    hold(settings.data_dir, job_id, after_step=2)

    client.fine_tuning.jobs.pause(job_id)
    client.fine_tuning.jobs.cancel(job_id)
    ended = wait(client, job_id, timeout_s=10)

    assert ended.status == "cancelled"
    wait_until(lambda: not processes_of(job_id), timeout_s=5)
