"""A real run is watched from its submission to its end."""

import httpx
import openai
import pytest

from tests.app.watching import Watch
from tests.conftest import Api
from tests.e2e.jobs import create
from tests.factories import jsonl

pytestmark = pytest.mark.usefixtures("worker")


async def test_what_a_watcher_is_told_is_what_is_stored_in_the_end(
    api: Api, organization: str, client: openai.OpenAI, http: httpx.Client
):
    file = client.files.create(file=("t.jsonl", jsonl(24)), purpose="fine-tune").id
    job_id = create(
        client,
        file,
        validation_file=file,
        hyperparameters={"batch_size": 4},
        training={"max_steps": 12, "eval_steps": 4},
    ).id

    async with httpx.AsyncClient(
        base_url=http.base_url, headers=http.headers, timeout=120
    ) as watching:
        watch = Watch(watching, job_id)
        await watch.read()

    told = {
        (name, data["step"]): value
        for data in watch.of("metrics")
        for name, value in data["values"].items()
    }
    stored = {
        (series["name"], step): value
        for series in http.get(f"/fine_tuning/jobs/{job_id}/metrics").json()["data"]
        for step, value in series["points"]
    }
    assert watch.of("done") == [{"status": "succeeded"}]
    assert told == stored and {step for _, step in told} == set(range(13))
    assert watch.of("status")[-1] == http.get(f"/fine_tuning/jobs/{job_id}").json()
