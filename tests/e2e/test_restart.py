"""What ran yesterday carries on today: the service is stopped in the middle and started again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from tests.conftest import wait_until
from tests.e2e.jobs import create, steps_done, wait
from tests.factories import jsonl


@pytest.fixture
def data() -> Iterator[Path]:
    """A folder to be, outside pytest's own closed folders."""
    root = Path("/tmp") / f"basin-restart-{os.getpid()}-{time.monotonic_ns()}"
    root.mkdir(mode=0o755)
    yield root / "data"
    shutil.rmtree(root)


@contextmanager
def basin_up(data: Path, models: Path) -> Iterator[openai.OpenAI]:
    argv = [sys.executable, "-m", "app.cli", "up", "--json", "--gpus", "cpu", "--port", "0"]
    process = subprocess.Popen(
        [*argv, "--data", str(data), "--models", str(models)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        with openai.OpenAI(base_url=f"{ready['url']}/v1", api_key=ready["api_key"]) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=90)
    assert process.returncode == 0


def test_a_job_that_ran_when_the_service_stopped_is_carried_on(data: Path, models_dir: Path):
    with basin_up(data, models_dir) as client:
        file = client.files.create(file=("t.jsonl", jsonl(24)), purpose="fine-tune")
        # So many that a fast machine is not done before the service is told to stop.
        job_id = create(
            client, file.id, training={"max_steps": 2000}, hyperparameters={"batch_size": 4}
        ).id
        wait_until(lambda: steps_done(client, job_id) > 5, timeout_s=60)

    with basin_up(data, models_dir) as client:
        job = wait(client, job_id, timeout_s=300)
        tries = client.get(f"/fine_tuning/jobs/{job_id}/attempts", cast_to=httpx.Response).json()
        messages = [event.message for event in client.fine_tuning.jobs.list_events(job_id)]

    resumed = [message for message in messages if message.startswith("Training resumed at step")]
    assert job.status == "succeeded"
    assert [each["outcome"] for each in tries["data"]] == ["interrupted", "succeeded"], tries
    assert len(resumed) == 1 and int(resumed[0].rpartition(" ")[2]) > 5
    assert "The worker shut down; the job waits again" in messages
