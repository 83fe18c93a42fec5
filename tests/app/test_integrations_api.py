"""A key of Weights & Biases is stored, used and never shown; jobs say where their metrics go."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from app.ids import token
from app.keys.service import Scope
from app.settings import ApiSettings
from tests.app.records import run_now
from tests.conftest import Api, running_api
from tests.factories import jsonl
from tests.receiver import RECEIVER_HOST
from tests.waiting import wait_until

pytest.importorskip("mlflow", reason="the extra `integrations` is not installed")
pytest.importorskip("wandb", reason="the extra `integrations` is not installed")

WANDB = "/organization/integrations/wandb"
NOWHERE = f"http://{RECEIVER_HOST}:1/"
API_KEY = "canary" + "7" * 34
INTEGRATION = {
    "type": "wandb",
    "wandb": {"project": "tuning", "name": "first", "entity": None, "tags": ["a"]},
}


@pytest.fixture
def key(api: Api) -> str:
    return api.key(f"charted-{token(6)}", Scope.ADMIN)


@pytest.fixture
def admin(api: Api, key: str) -> Iterator[httpx.Client]:
    with api.http(key) as client:
        yield client


def submit(client: openai.OpenAI, **body: Any) -> FineTuningJob:
    file_id = client.files.create(file=("t.jsonl", jsonl(20)), purpose="fine-tune").id
    return client.fine_tuning.jobs.create(model="tiny-llama", training_file=file_id, **body)


def test_a_key_is_stored_replaced_and_deleted_and_only_its_end_is_shown(admin: httpx.Client):
    missing = admin.get(WANDB)
    stored = admin.put(WANDB, json={"api_key": API_KEY})
    replaced = admin.put(WANDB, json={"api_key": "b" * 36 + "1234"})
    shown = admin.get(WANDB)
    deleted = admin.delete(WANDB)

    assert [missing.status_code, admin.get(WANDB).status_code] == [404, 404]
    assert (stored.json()["last4"], replaced.json()["last4"]) == ("7777", "1234")
    assert shown.json() == replaced.json() and deleted.json()["deleted"] is True
    assert API_KEY not in stored.text
    logged = admin.get("/organization/audit_logs").json()["data"]
    assert [each["type"] for each in logged][:3] == [
        "integration.deleted", "integration.stored", "integration.stored"
    ]  # fmt: skip


def test_only_an_admin_stores_a_key(api: Api):
    with api.http(api.key("plain", Scope.WRITE)) as writer:
        assert writer.put(WANDB, json={"api_key": API_KEY}).status_code == 403


def test_without_a_key_a_job_that_asks_for_wandb_is_refused(api: Api, key: str):
    with api.openai(key) as client, pytest.raises(openai.BadRequestError) as refused:
        submit(client, integrations=[INTEGRATION])

    assert refused.value.param == "integrations" and "PUT" in refused.value.message


def test_a_job_shows_its_integration_as_openais_client_reads_it(
    api: Api, key: str, admin: httpx.Client
):
    admin.put(WANDB, json={"api_key": API_KEY})
    with api.openai(key) as client:
        job = submit(client, integrations=[INTEGRATION])
        plain = submit(client)
        client.fine_tuning.jobs.cancel(job.id)
        client.fine_tuning.jobs.cancel(plain.id)
        found = client.fine_tuning.jobs.retrieve(job.id)

    (integration,) = found.integrations or []
    assert integration.type == "wandb" and integration.wandb.project == "tuning"
    assert (integration.wandb.name, integration.wandb.tags) == ("first", ["a"])
    assert plain.integrations == []
    count = "SELECT count(*) FROM forwards WHERE job_id = :id"
    assert run_now(api.settings, count, id=job.id) == 1
    assert run_now(api.settings, count, id=plain.id) == 0


def test_a_running_service_tells_mlflow_of_every_job_and_its_key_is_nowhere(
    settings: ApiSettings, own_url: str, tmp_path: Path
):
    store, log = tmp_path / "mlflow.db", tmp_path / "api.log"
    given = {"database_url": own_url, "mlflow_tracking_uri": f"sqlite:///{store}"}

    with running_api(settings.model_copy(update=given), log) as api:
        key = api.key("charted", Scope.ADMIN)
        with api.http(key) as admin, api.openai(key) as client:
            admin.put(WANDB, json={"api_key": API_KEY})
            cancelled = ["fine_tuning.job.cancelled"]
            hook = client.webhooks.create(name="x", url=NOWHERE, event_types=cancelled)
            job = submit(client, integrations=[INTEGRATION])
            client.fine_tuning.jobs.cancel(job.id)
            states = "SELECT string_agg(state, ' ') FROM forwards"
            wait_until(lambda: run_now(api.settings, states) == "done done", timeout_s=120)
            told = [
                admin.get(path).text
                for path in (
                    f"/fine_tuning/jobs/{job.id}",
                    f"/fine_tuning/jobs/{job.id}/events",
                    "/organization/audit_logs",
                )
            ]
        rows = "SELECT string_agg(j::text, '') || string_agg(encode(k.secret, 'escape'), '')"
        told.append(run_now(api.settings, f"{rows} FROM jobs j, integration_keys k"))

    with closing(sqlite3.connect(store)) as database:
        runs = database.execute("SELECT name, status FROM runs").fetchall()
        experiments = [name for (name,) in database.execute("SELECT name FROM experiments")]
    assert runs == [(job.id, "KILLED")] and "basin/charted" in experiments
    printed = log.read_text()
    assert "webhook.attempted" in printed and "metrics.forwarded" in printed
    secrets = (API_KEY, hook.signing_secret, hook.signing_secret.removeprefix("whsec_"))
    assert not [text for text in (*told, printed) for secret in secrets if secret in text]
