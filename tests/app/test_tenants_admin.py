"""An organization looks after itself: its keys, what was changed, what it used."""

import asyncio
import json
from collections.abc import Iterator

import httpx
import pytest

from app.db import connected
from app.ids import token
from app.keys.service import Scope
from app.settings import ApiSettings
from tests.app import records
from tests.app.comparisons.test_comparisons_api import compare
from tests.app.records import run_now
from tests.app.route_table import Route, changing_routes
from tests.app.test_cli import basin
from tests.app.test_jobs_api import JOBS, submit
from tests.conftest import Api, environment
from tests.factories import jsonl
from tests.receiver import RECEIVER_HOST

ALL = "/organizations"
KEYS, AUDIT, USAGE = "/organization/keys", "/organization/audit_logs", "/organization/usage"

# What is written down for each route that changes something.
ACTIONS = {
    "POST /v1/files": "file.uploaded",
    "DELETE /v1/files/{file_id}": "file.deleted",
    "POST /v1/uploads": "upload.created",
    "POST /v1/uploads/{upload_id}/parts": "upload.part_added",
    "POST /v1/uploads/{upload_id}/complete": "upload.completed",
    "POST /v1/uploads/{upload_id}/cancel": "upload.cancelled",
    "POST /v1/fine_tuning/jobs": "job.created",
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": "job.cancelled",
    "POST /v1/fine_tuning/jobs/{job_id}/pause": "job.paused",
    "POST /v1/fine_tuning/jobs/{job_id}/resume": "job.resumed",
    "POST /v1/comparisons": "comparison.created",
    "POST /v1/comparisons/{comparison_id}/cancel": "comparison.cancelled",
    "POST /v1/fine_tuning/checkpoints/{checkpoint:path}/permissions": "permission.created",
    "DELETE /v1/fine_tuning/checkpoints/{checkpoint:path}/permissions/{permission_id}": (
        "permission.deleted"
    ),
    "DELETE /v1/models/{model:path}": "model.deleted",
    "POST /v1/chat/completions": "model.previewed",
    "POST /v1/completions": "model.previewed",
    "POST /v1/organization/keys": "key.created",
    "POST /v1/organization/keys/{key_id}/rotate": "key.rotated",
    "DELETE /v1/organization/keys/{key_id:key}": "key.revoked",
    "POST /v1/organizations": "organization.created",
    "POST /v1/organizations/{organization_id}/limits": "limits.changed",
    "POST /v1/organizations/{organization_id}/keys": "key.created",
    "DELETE /v1/organizations/{organization_id}/keys/{key_id}": "key.revoked",
    "PUT /v1/organization/integrations/wandb": "integration.stored",
    "DELETE /v1/organization/integrations/wandb": "integration.deleted",
    "POST /v1/webhook_endpoints": "webhook.created",
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}": "webhook.changed",
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret": "webhook.rotated",
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}/test": "webhook.tested",
    "DELETE /v1/webhook_endpoints/{webhook_endpoint_id}": "webhook.deleted",
}


@pytest.fixture
def org() -> str:
    return f"audited-{token(6)}"


@pytest.fixture
def key(api: Api, org: str) -> str:
    return api.key(org, Scope.ADMIN)


@pytest.fixture
def admin(api: Api, key: str) -> Iterator[httpx.Client]:
    with api.http(key) as client:
        yield client


@pytest.fixture
def operator(api: Api, org: str) -> Iterator[httpx.Client]:
    """Whose key may do all that there is to do."""
    with api.http(api.key(org, Scope.OPERATOR)) as client:
        yield client


def upload(http: httpx.Client) -> str:
    file = {"file": ("train.jsonl", jsonl(10))}
    return http.post("/files", files=file, data={"purpose": "fine-tune"}).json()["id"]


def change_everything(api: Api, http: httpx.Client) -> list[tuple[str, str]]:
    """Do what each route in ACTIONS does; return each action and what it was done to."""
    file_id = upload(http)
    job = submit(http, file_id).json()
    job_id = job["id"]
    for verb in ("pause", "resume", "cancel"):
        http.post(f"{JOBS}/{job_id}/{verb}")
    compared = compare(http, {"training_file": file_id, "validation_file": file_id}).json()["id"]
    http.post(f"/comparisons/{compared}/cancel")
    http.delete(f"/files/{file_id}")
    key_id = http.post(KEYS, json={"name": "laptop"}).json()["id"]
    http.post(f"{KEYS}/{key_id}/rotate")
    http.delete(f"{KEYS}/{key_id}")
    told = [("file.uploaded", file_id), ("job.created", job_id)]
    told += [(f"job.{verb}", job_id) for verb in ("paused", "resumed", "cancelled")]
    told += [(f"comparison.{verb}", compared) for verb in ("created", "cancelled")]
    told += [("file.deleted", file_id)]
    told += [(f"key.{verb}", key_id) for verb in ("created", "rotated", "revoked")]
    told += change_webhooks(http) + change_integrations(http) + operate(api, http)
    return told + change_a_model(api, http, job) + change_uploads(http) + try_a_model(api, http)


def operate(api: Api, by: httpx.Client) -> list[tuple[str, str]]:
    """Do all that an operator does, to the operator's own organization."""
    made_id = by.post(ALL, json={"name": f"made-{token(6)}"}).json()["id"]
    own_id = by.get(f"{KEYS}/self").json()["organization"]["id"]
    by.post(f"{ALL}/{own_id}/limits", json={"max_queued": 1000})
    key_id = by.post(f"{ALL}/{own_id}/keys", json={"name": "theirs"}).json()["id"]
    by.delete(f"{ALL}/{own_id}/keys/{key_id}")
    told = [("organization.created", made_id), ("limits.changed", own_id)]
    return told + [(f"key.{verb}", key_id) for verb in ("created", "revoked")]


def change_webhooks(http: httpx.Client) -> list[tuple[str, str]]:
    """Add an endpoint where nobody listens, and do to it what can be done."""
    about = {"url": f"http://{RECEIVER_HOST}:9/", "event_types": ["fine_tuning.job.failed"]}
    endpoint_id = http.post("/webhook_endpoints", json=about).json()["id"]
    endpoint = f"/webhook_endpoints/{endpoint_id}"
    http.post(endpoint, json={"name": "beeper"})
    http.post(f"{endpoint}/rotate_secret")
    http.post(f"{endpoint}/test")
    http.delete(endpoint)
    done = ("created", "changed", "rotated", "tested", "deleted")
    return [(f"webhook.{verb}", endpoint_id) for verb in done]


def change_integrations(http: httpx.Client) -> list[tuple[str, str]]:
    wandb = "/organization/integrations/wandb"
    http.put(wandb, json={"api_key": "a" * 40})
    http.delete(wandb)
    return [(f"integration.{verb}", "wandb") for verb in ("stored", "deleted")]


def change_a_model(api: Api, http: httpx.Client, job: dict) -> list[tuple[str, str]]:
    """Share a model of the job's, share it no longer, and delete it."""
    model = f"ft:tiny-llama:{job['id'][-8:]}"
    asyncio.run(leave_checkpoint(api, job, model))
    shared = f"/fine_tuning/checkpoints/{model}/permissions"
    body = {"project_ids": [job["organization_id"]]}
    permission_id = http.post(shared, json=body).json()["data"][0]["id"]
    http.delete(f"{shared}/{permission_id}")
    http.delete(f"/models/{model}")
    told = [(f"permission.{verb}", permission_id) for verb in ("created", "deleted")]
    return [*told, ("model.deleted", model)]


def try_a_model(api: Api, http: httpx.Client) -> list[tuple[str, str]]:
    """Ask a worker that is alive and does not answer, and do not wait for it."""
    worker = f"silent-{token(6)}"
    devices = '{"all": ["cpu"], "preview": "cpu"}'
    insert = "INSERT INTO workers (id, hostname, devices) VALUES (:id, 'here', :devices ::jsonb)"
    run_now(api.settings, insert, id=worker, devices=devices)
    asked = {"messages": [{"role": "user", "content": "Hello"}]}, {"prompt": "Hello"}
    for path, body in zip(("/chat/completions", "/completions"), asked, strict=True):
        with pytest.raises(httpx.ReadTimeout):
            http.post(path, json=body | {"model": "tiny-llama"}, timeout=5)
    run_now(api.settings, "DELETE FROM workers WHERE id = :id", id=worker)
    return [("model.previewed", "tiny-llama")] * 2


async def leave_checkpoint(api: Api, job: dict, model: str) -> None:
    async with connected(api.settings.database_url) as db:
        blob = await records.ready_blob(db, job["organization_id"], b"an adapter")
        await records.make_checkpoint(db, job["id"], blob.blob_id, model=model)


def change_uploads(http: httpx.Client) -> list[tuple[str, str]]:
    """Complete an upload, and cancel another one."""
    data = jsonl(10)
    about = {"filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    whole, left = (
        http.post("/uploads", json=about | {"bytes": len(data)}).json()["id"] for _ in range(2)
    )
    part_id = http.post(f"/uploads/{whole}/parts", files={"data": data}).json()["id"]
    completed = http.post(f"/uploads/{whole}/complete", json={"part_ids": [part_id]}).json()
    http.post(f"/uploads/{left}/cancel")
    told = [("upload.created", whole), ("upload.created", left), ("upload.cancelled", left)]
    told += [("upload.part_added", whole), ("upload.completed", whole)]
    return [*told, ("file.uploaded", completed["file"]["id"])]


def logs(http: httpx.Client, **params: str | int | list[str]) -> list[dict]:
    return http.get(AUDIT, params={"limit": 100} | params).json()["data"]


@pytest.mark.parametrize("route", changing_routes(), ids=str)
def test_every_route_that_changes_something_has_an_action(route: Route):
    assert str(route) in ACTIONS, (
        f"{route} changes something: write it down with audit.record, put its action into ACTIONS"
        f" in {__file__}, and do it in change_everything."
    )


def test_every_change_is_written_down_with_who_did_it_to_what(api: Api, operator: httpx.Client):
    changes = change_everything(api, operator)

    key_id = operator.get(f"{KEYS}/self").json()["id"]
    told = [each for each in logs(operator) if each["actor"]["type"] == "api_key"]

    assert sorted((each["type"], each["target"]) for each in told) == sorted(changes)
    assert {action for action, _ in changes} == set(ACTIONS.values())
    for each in told:
        assert each["object"] == "organization.audit_log" and each["effective_at"] > 0
        assert each["actor"]["api_key"] == {"id": key_id}
        assert each["actor"]["ip_address"] == "127.0.0.1"
        assert each["request_id"].startswith("req_")


def test_no_secret_is_ever_written_down_or_listed(admin: httpx.Client, key: str):
    made = admin.post(KEYS, json={"name": "a"}).json()
    rotated = admin.post(f"{KEYS}/{made['id']}/rotate").json()

    shown = json.dumps(logs(admin)) + admin.get(KEYS).text

    for secret in (key, made["key"], rotated["key"]):
        assert secret[15:] not in shown


def test_a_refused_change_is_not_written_down(admin: httpx.Client):
    file_id = upload(admin)
    job_id = submit(admin, file_id).json()["id"]

    refused = [
        admin.delete(f"/files/{file_id}"),
        submit(admin, file_id, seed=-1),
        admin.post(f"{JOBS}/ftjob-x/cancel"),
    ]

    assert all(answer.is_client_error for answer in refused)
    told = [(each["type"], each["target"]) for each in logs(admin)][:2]
    assert told == [("job.created", job_id), ("file.uploaded", file_id)]


def test_a_request_that_is_sent_again_is_written_down_once(admin: httpx.Client):
    file_id = upload(admin)
    body = {"model": "tiny-llama", "training_file": file_id}

    made = [
        admin.post(JOBS, json=body, headers={"Idempotency-Key": "once"}).json()["id"]
        for _ in range(2)
    ]

    assert [each["target"] for each in logs(admin, action="job.created")] == [made[0]]
    assert made[0] == made[1]


def test_the_log_is_paged_and_filtered(api: Api, operator: httpx.Client):
    change_everything(api, operator)

    whole = [each["id"] for each in logs(operator)]
    first = operator.get(AUDIT, params={"limit": 4}).json()
    second = operator.get(AUDIT, params={"limit": 100, "after": first["last_id"]}).json()
    paused = logs(operator, action=["job.paused", "job.resumed"])

    assert first["object"] == "list" and first["has_more"] and not second["has_more"]
    assert [each["id"] for page in (first, second) for each in page["data"]] == whole
    assert [each["type"] for each in paused] == ["job.resumed", "job.paused"]


def test_what_is_no_action_is_no_filter(admin: httpx.Client):
    answer = admin.get(AUDIT, params={"action": "everything"})

    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith("action")


def test_what_the_operator_does_is_in_the_log_too(
    settings: ApiSettings, admin: httpx.Client, org: str, key: str
):
    env = environment(settings)
    basin("orgs", "set", org, "--max-running", "3", env=env)

    (change,) = logs(admin, action="limits.changed")
    listed = basin("audit", "--org", org, env=env | {"COLUMNS": "250"}).stdout
    told = basin("audit", "--org", org, "--json", env=env).stdout

    assert change["actor"] == {"type": "operator", "api_key": None, "ip_address": None}
    assert change["data"] == {"max_running": 3}
    assert "limits.changed" in listed and "operator" in listed
    assert [each["action"] for each in json.loads(told)] == ["key.created", "limits.changed"]
    assert key[15:] not in listed + told


@pytest.mark.parametrize("path", [KEYS, AUDIT, "/organization/limits"])
@pytest.mark.parametrize("scope", [Scope.READ, Scope.WRITE])
def test_only_an_admin_key_administers(api: Api, path: str, scope: Scope):
    with api.http(api.key("plain", scope)) as http:
        answer = http.get(path)

    assert answer.status_code == 403 and "scope 'admin'" in answer.json()["error"]["message"]


def test_an_admin_makes_lists_rotates_and_revokes_keys(api: Api, admin: httpx.Client, key: str):
    body = {"name": "dashboard", "scope": "read", "expires_days": 1}
    made = admin.post(KEYS, json=body).json()
    rotated = admin.post(f"{KEYS}/{made['id']}/rotate", json={"grace_minutes": 5}).json()
    in_grace = [looks(api, each["key"]) for each in (made, rotated)]
    listed = admin.get(KEYS).json()["data"]
    revoked = admin.delete(f"{KEYS}/{made['id']}").json()
    after = [looks(api, each["key"]) for each in (made, rotated)]

    assert in_grace == [200, 200] and after == [401, 401]
    assert [each["id"] for each in listed] == [key[3:15], made["id"]]
    assert (listed[1]["scope"], listed[1]["state"]) == ("read", "live")
    assert listed[1]["expires_at"] - listed[1]["created_at"] == 86400
    assert listed[1]["previous_until"] and "key" not in listed[1]
    assert revoked == {"id": made["id"], "object": "organization.key", "deleted": True}
    assert admin.get(KEYS).json()["data"][1]["state"] == "revoked"


def test_an_admin_key_can_revoke_itself_and_that_is_final(admin: httpx.Client, key: str):
    assert admin.delete(f"{KEYS}/{key[3:15]}").status_code == 200
    assert admin.get(KEYS).status_code == 401


@pytest.mark.parametrize(
    "body",
    [{}, {"name": ""}, {"name": "a", "scope": "root"},
     {"name": "a", "scope": "operator"}, {"name": "a", "expires_days": 0},
     {"name": "\x1b[31m"}, {"name": "a", "organization": "other"}],
)  # fmt: skip
def test_a_key_that_cannot_be_is_refused(admin: httpx.Client, body: dict):
    assert admin.post(KEYS, json=body).status_code == 400


def test_usage_counts_jobs_devices_tokens_and_bytes_of_a_month(
    settings: ApiSettings, api: Api, admin: httpx.Client, org: str
):
    file_id = upload(admin)
    done, _ = (submit(admin, file_id).json()["id"] for _ in range(2))
    succeed(settings, done)

    with api.http(api.key(org, Scope.READ)) as reader:
        now = reader.get(USAGE).json()
        before = reader.get(USAGE, params={"month": "2020-01"}).json()
    printed = basin("usage", "--org", org, "--json", env=environment(settings)).stdout

    assert (now["jobs"]["succeeded"], now["jobs"]["queued"], now["jobs"]["failed"]) == (1, 1, 0)
    assert now["gpu_seconds"] == pytest.approx(60, abs=1) and now["trained_tokens"] == 1234
    assert now["stored_bytes"] == admin.get(f"/files/{file_id}").json()["bytes"]
    assert set(before["jobs"].values()) == {0} and before["gpu_seconds"] == 0
    (told,) = json.loads(printed)
    assert told.pop("organization") == org
    assert told == {name: now[name] for name in told} and len(told) == 5


@pytest.mark.parametrize("month", ["2026-13", "2026", "november", "2026-00", "0000-01"])
def test_a_month_that_is_none_is_refused(admin: httpx.Client, settings: ApiSettings, month: str):
    answer = admin.get(USAGE, params={"month": month})

    assert answer.status_code == 400 and answer.json()["error"]["param"] == "month"


def test_the_operator_sees_all_organizations(settings: ApiSettings, admin: httpx.Client, org: str):
    submit(admin, upload(admin))
    env = environment(settings) | {"COLUMNS": "200"}

    told = basin("usage", env=env).stdout
    wrong = basin("usage", "--month", "soon", env=env)

    (line,) = [line for line in told.splitlines() if org in line]
    assert "1 queued" in line
    assert wrong.returncode == 2 and "no month" in wrong.stderr


def looks(api: Api, key: str) -> int:
    with api.http(key) as http:
        return http.get("/models").status_code


def succeed(settings: ApiSettings, job_id: str) -> None:
    statement = "UPDATE jobs SET status = 'succeeded', finished_at = now(), trained_tokens = 1234"
    run_now(settings, f"{statement} WHERE id = :id", id=job_id)
    attempt = (
        "INSERT INTO attempts (job_id, number, worker, started_at, ended_at)"
        " VALUES (:id, 1, 'w', now(), now() + interval '1 minute')"
    )
    run_now(settings, attempt, id=job_id)
