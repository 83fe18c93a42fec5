"""Webhook endpoints over HTTP and with OpenAI's client, told of jobs by a running service."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from app.ids import token
from app.keys.service import Scope
from app.settings import ApiSettings
from app.vault import Vault
from tests.app.records import run_now
from tests.app.test_cli import basin
from tests.app.test_jobs_api import submit
from tests.conftest import Api, environment
from tests.factories import jsonl
from tests.receiver import Heard, Receiver, receiving
from tests.waiting import wait_until

ENDPOINTS = "/webhook_endpoints"
SUCCEEDED, FAILED, CANCELLED = (
    f"fine_tuning.job.{how}" for how in ("succeeded", "failed", "cancelled")
)


@pytest.fixture(scope="module")
def key(api: Api) -> str:
    return api.key(f"hooked-{token(6)}", Scope.ADMIN)


@pytest.fixture(scope="module")
def admin(api: Api, key: str) -> Iterator[httpx.Client]:
    with api.http(key) as client:
        yield client


@pytest.fixture(scope="module")
def admins_openai(api: Api, key: str) -> Iterator[openai.OpenAI]:
    with api.openai(key) as client:
        yield client


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def endpoint(admin: httpx.Client, receiver: Receiver) -> Iterator[dict[str, Any]]:
    body = {"url": receiver.url, "name": "ci", "event_types": [SUCCEEDED, FAILED, CANCELLED]}
    made = admin.post(ENDPOINTS, json=body)
    assert made.status_code == 200, made.text
    yield made.json()
    admin.delete(f"{ENDPOINTS}/{made.json()['id']}")


def a_cancelled_job(http: httpx.Client) -> str:
    files = {"file": ("train.jsonl", jsonl(20))}
    file_id = http.post("/files", files=files, data={"purpose": "fine-tune"}).json()["id"]
    job_id: str = submit(http, file_id).json()["id"]
    assert http.post(f"/fine_tuning/jobs/{job_id}/cancel").status_code == 200
    return job_id


def unwrap(client: openai.OpenAI, heard: Heard, secret: str) -> Any:
    return client.webhooks.unwrap(heard.body, heard.headers, secret=secret)


def test_the_end_of_a_job_is_told_signed_as_openais_client_verifies(
    admin: httpx.Client,
    admins_openai: openai.OpenAI,
    receiver: Receiver,
    endpoint: dict[str, Any],
):
    job_id = a_cancelled_job(admin)

    wait_until(lambda: bool(receiver.heard), timeout_s=20)
    event = unwrap(admins_openai, receiver.heard[0], endpoint["signing_secret"])
    assert (event.type, event.data.id, event.object) == (CANCELLED, job_id, "event")
    assert event.id.startswith("evt_")
    assert receiver.heard[0].headers["content-type"] == "application/json"
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrap(admins_openai, receiver.heard[0], "whsec_" + "A" * 44)

    def logged() -> list[Any]:
        found: list[Any] = admin.get(f"{ENDPOINTS}/{endpoint['id']}/deliveries").json()["data"]
        return found

    wait_until(lambda: logged()[0]["state"] == "delivered", timeout_s=20)
    (delivery,) = logged()
    assert delivery["id"] == receiver.heard[0].headers["webhook-id"]
    assert delivery["event_id"] == event.id and delivery["next_try_at"] is None
    (attempt,) = delivery["attempts"]
    assert (attempt["status_code"], attempt["error"], attempt["response"]) == (200, None, "thanks")


def test_openais_client_manages_endpoints(admins_openai: openai.OpenAI, receiver: Receiver):
    webhooks = admins_openai.webhooks
    made = webhooks.create(event_types=[SUCCEEDED], name="mine", url=receiver.url)

    renamed = webhooks.update(made.id, name="ours", event_types=[FAILED])
    tested = webhooks.test(made.id, event_type=FAILED)
    rotated = webhooks.rotate_secret(made.id)

    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret_hint == f"whsec_…{made.signing_secret[-4:]}"
    assert (renamed.name, renamed.event_types, renamed.url) == ("ours", [FAILED], receiver.url)
    assert tested.status_code == 200 and tested.event_type == FAILED
    assert unwrap(admins_openai, receiver.heard[0], made.signing_secret).type == FAILED
    assert rotated.signing_secret != made.signing_secret
    assert made.id in [each.id for each in webhooks.list()]
    assert webhooks.retrieve(made.id).name == "ours"
    assert webhooks.event_types.list().data == [SUCCEEDED, FAILED, CANCELLED]
    assert webhooks.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        webhooks.retrieve(made.id)


def test_the_secret_is_shown_once_and_kept_sealed(
    api: Api, admin: httpx.Client, endpoint: dict[str, Any]
):
    secret = endpoint["signing_secret"]

    shown = admin.get(f"{ENDPOINTS}/{endpoint['id']}").text + admin.get(ENDPOINTS).text
    audit = admin.get("/organization/audit_logs", params={"action": "webhook.created"}).text
    row = run_now(
        api.settings,
        "SELECT row_to_json(t)::text || encode(secret, 'escape') FROM webhook_endpoints t"
        " WHERE id = :id",
        id=endpoint["id"],
    )

    assert endpoint["id"] in audit
    assert not [text for text in (shown, audit, row) if secret in text or secret[6:] in text]


def test_after_a_rotation_the_old_secret_is_good_as_long_as_was_asked(
    admin: httpx.Client, admins_openai: openai.OpenAI, receiver: Receiver, endpoint: dict[str, Any]
):
    path = f"{ENDPOINTS}/{endpoint['id']}"
    old = endpoint["signing_secret"]
    kept = {"keep_old_secret_active_for_24_hours": True}

    new = admin.post(f"{path}/rotate_secret", json=kept).json()["signing_secret"]
    admin.post(f"{path}/test")
    newest = admin.post(f"{path}/rotate_secret").json()["signing_secret"]
    admin.post(f"{path}/test")

    in_grace, after = receiver.heard
    assert unwrap(admins_openai, in_grace, old) and unwrap(admins_openai, in_grace, new)
    assert unwrap(admins_openai, after, newest)
    for secret in (old, new):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            unwrap(admins_openai, after, secret)


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost/hook",
        "https://127.0.0.1/hook",
        "https://10.0.0.1/hook",
        "https://169.254.169.254/latest",
        "https://[::1]/hook",
        "http://8.8.8.8/hook",
        "https://user:pass@8.8.8.8/hook",
        "https://no-such-host.invalid/hook",
        "ftp://8.8.8.8/hook",
        "hook",
    ],
)
def test_an_endpoint_that_may_not_be_reached_is_refused(
    admin: httpx.Client, endpoint: dict[str, Any], url: str
):
    body = {"url": url, "event_types": [SUCCEEDED]}

    for path, sent in ((ENDPOINTS, body), (f"{ENDPOINTS}/{endpoint['id']}", {"url": url})):
        refused = admin.post(path, json=sent)

        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"] == "url"
    assert admin.get(f"{ENDPOINTS}/{endpoint['id']}").json()["url"] == endpoint["url"]


def test_an_event_that_there_is_not_is_refused_by_name(admin: httpx.Client, receiver: Receiver):
    body = {"url": receiver.url, "event_types": ["batch.completed"]}

    refused = admin.post(ENDPOINTS, json=body)

    assert refused.status_code == 400 and CANCELLED in refused.json()["error"]["message"]


def test_a_test_that_reaches_nobody_says_why(
    admin: httpx.Client, receiver: Receiver, endpoint: dict[str, Any]
):
    receiver.statuses = [500]
    answered = admin.post(f"{ENDPOINTS}/{endpoint['id']}/test").json()
    port_of_nobody = {"url": "http://127.0.0.2:1/hook"}
    admin.post(f"{ENDPOINTS}/{endpoint['id']}", json=port_of_nobody)

    refused = admin.post(f"{ENDPOINTS}/{endpoint['id']}/test")

    assert answered["status_code"] == 500
    assert refused.status_code == 400 and "ConnectError" in refused.json()["error"]["message"]
    logged = admin.get(f"{ENDPOINTS}/{endpoint['id']}/deliveries").json()["data"]
    assert [each["state"] for each in logged] == ["given_up", "given_up"]


def test_an_endpoint_that_is_disabled_is_told_nothing_until_it_is_taken_up_again(
    admin: httpx.Client, receiver: Receiver, endpoint: dict[str, Any]
):
    path = f"{ENDPOINTS}/{endpoint['id']}"

    stopped = admin.post(path, json={"enabled": False}).json()
    a_cancelled_job(admin)
    started = admin.post(path, json={"enabled": True}).json()
    told = a_cancelled_job(admin)

    assert (stopped["enabled"], started["enabled"]) == (False, True)
    assert "owner" in stopped["disabled_reason"] and started["disabled_reason"] is None
    wait_until(lambda: bool(receiver.heard), timeout_s=20)
    assert [told.encode() in heard.body for heard in receiver.heard] == [True]


def test_only_an_admin_sees_and_makes_endpoints(api: Api, endpoint: dict[str, Any]):
    with api.http(api.key("writes-hooks", Scope.WRITE)) as writer:
        body = {"url": endpoint["url"], "event_types": [SUCCEEDED]}

        answers = [writer.get(ENDPOINTS), writer.post(ENDPOINTS, json=body)]

    assert [answer.status_code for answer in answers] == [403, 403]


def test_an_organization_has_so_many_endpoints_and_no_more(api: Api, receiver: Receiver):
    with api.http(api.key(f"greedy-{token(6)}", Scope.ADMIN)) as greedy:
        body = {"url": receiver.url, "event_types": [SUCCEEDED]}

        answers = [greedy.post(ENDPOINTS, json=body) for _ in range(21)]

    assert [answer.status_code for answer in answers] == [200] * 20 + [400]
    assert "delete one first" in answers[-1].text


def test_the_command_line_makes_lists_and_deletes_endpoints(api: Api, receiver: Receiver):
    env = environment(api.settings) | {"COLUMNS": "250"}
    org = f"shell-{token(6)}"
    basin("keys", "create", "--org", org, env=env)

    made = basin("webhooks", "create", receiver.url, "--org", org, "--name", "bot", env=env)
    refused = basin("webhooks", "create", "https://10.0.0.1/", "--org", org, env=env)
    listed = basin("webhooks", "list", env=env).stdout
    (line,) = [line for line in listed.splitlines() if org in line]
    endpoint_id = line.strip("│ ").split()[0]
    tested = basin("webhooks", "test", endpoint_id, env=env)
    deliveries = basin("webhooks", "deliveries", endpoint_id, env=env).stdout
    rotated = basin("webhooks", "rotate", endpoint_id, env=env).stdout.strip()
    deleted = basin("webhooks", "delete", endpoint_id, env=env)

    assert made.stdout.startswith("whsec_") and rotated.startswith("whsec_")
    assert rotated != made.stdout.strip() and "bot" in line
    assert refused.returncode == 2 and "10.0.0.1" in refused.stderr
    assert tested.returncode == 0 and "200" in tested.stdout
    assert "given_up" not in deliveries and "delivered" in deliveries and "200" in deliveries
    assert deleted.returncode == 0 and org not in basin("webhooks", "list", env=env).stdout


def test_after_a_new_key_everything_is_sealed_anew_by_one_command(
    settings: ApiSettings, own_url: str, receiver: Receiver
):
    old, new = "the key of this year", "the key of next year"
    alone = settings.model_copy(update={"database_url": own_url})
    env = environment(alone)
    basin("keys", "create", "--org", "sealed", env=env)
    asked = ("webhooks", "create", receiver.url, "--org", "sealed")
    secret = basin(*asked, env=env | {"BASIN_SECRETS_KEY": old}).stdout.strip()

    refused = basin("reseal", env=env | {"BASIN_SECRETS_KEY": new})
    resealed = basin("reseal", env=env | {"BASIN_SECRETS_KEY": f"{new},{old}"})

    assert refused.returncode == 2 and "another BASIN_SECRETS_KEY" in refused.stderr
    assert "1 webhook endpoints" in resealed.stdout
    sealed = run_now(alone, "SELECT secret FROM webhook_endpoints")
    assert Vault([new]).open(sealed) == secret
