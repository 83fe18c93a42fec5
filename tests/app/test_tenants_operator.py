"""The operator looks after all organizations, by a key that only the command line makes."""

import httpx
import pytest

from app.ids import token
from app.keys.service import Scope
from app.settings import ApiSettings
from tests.app.test_cli import basin
from tests.app.test_jobs_api import submit
from tests.conftest import Api, environment
from tests.factories import jsonl

ALL, KEYS = "/organizations", "/organization/keys"


@pytest.fixture(scope="module")
def operator(api: Api):
    with api.http(api.key("operators", Scope.OPERATOR)) as client:
        yield client


def test_an_operator_makes_an_organization_its_first_key_and_its_limits(
    api: Api, operator: httpx.Client
):
    name = f"tenant-{token(6)}"
    made = operator.post(ALL, json={"name": name}).json()
    limits = operator.post(f"{ALL}/{made['id']}/limits", json={"max_queued": 1}).json()["limits"]
    key = operator.post(f"{ALL}/{made['id']}/keys", json={"name": "first", "scope": "admin"}).json()

    with api.http(key["key"]) as tenant:
        self = tenant.get(f"{KEYS}/self").json()
        upload = {"file": ("train.jsonl", jsonl(10))}
        file_id = tenant.post("/files", files=upload, data={"purpose": "fine-tune"}).json()["id"]
        submitted = [submit(tenant, file_id).status_code for _ in range(2)]
        told = [each["type"] for each in tenant.get("/organization/audit_logs").json()["data"]]

    assert self["organization"] == {"id": made["id"], "name": name}
    assert (limits["max_queued"], limits["max_running"]) == (1, None)
    assert submitted == [200, 429]
    assert told[-2:] == ["key.created", "limits.changed"]


def test_what_is_left_out_of_limits_stays_and_null_lifts(operator: httpx.Client):
    made = operator.post(ALL, json={"name": f"tenant-{token(6)}"}).json()
    path = f"{ALL}/{made['id']}/limits"

    operator.post(path, json={"max_running": 2, "max_stored_bytes": 1 << 40})
    limits = operator.post(path, json={"max_running": None}).json()["limits"]

    assert (limits["max_running"], limits["max_stored_bytes"]) == (None, 1 << 40)


def test_an_operator_walks_all_organizations_with_what_each_uses(operator: httpx.Client):
    names = {f"tenant-{token(6)}" for _ in range(3)}
    for name in names:
        operator.post(ALL, json={"name": name})

    seen, after = [], None
    while True:
        page = operator.get(ALL, params={"limit": 2} | ({"after": after} if after else {})).json()
        seen += page["data"]
        if not page["has_more"]:
            break
        after = page["last_id"]

    assert names < {each["name"] for each in seen}
    assert len({each["id"] for each in seen}) == len(seen)
    assert all(each["limits"]["used"]["running"] >= 0 for each in seen)


def test_an_operator_ends_a_key_of_any_organization_at_once(api: Api, operator: httpx.Client):
    key = api.key(f"tenant-{token(6)}", Scope.ADMIN)
    with api.http(key) as tenant:
        owner = tenant.get(f"{KEYS}/self").json()["organization"]["id"]
        listed = operator.get(f"{ALL}/{owner}/keys").json()["data"]
        elsewhere = operator.delete(f"{ALL}/org-nothing/keys/{key[3:15]}")
        revoked = operator.delete(f"{ALL}/{owner}/keys/{key[3:15]}")
        after = tenant.get(f"{KEYS}/self")

    assert [each["id"] for each in listed] == [key[3:15]]
    assert (elsewhere.status_code, revoked.status_code, after.status_code) == (404, 200, 401)


def test_an_organization_is_made_once(operator: httpx.Client):
    body = {"name": f"tenant-{token(6)}"}

    answers = [operator.post(ALL, json=body) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 400]
    assert "already" in answers[1].json()["error"]["message"]


def test_an_administrator_does_not_come_to_an_operators_key(api: Api):
    """Neither by making one, nor by the new secret of one in the same organization."""
    theirs = api.key("shared-with-the-operator", Scope.OPERATOR)
    with api.http(api.key("shared-with-the-operator", Scope.ADMIN)) as admin:
        made = admin.post(KEYS, json={"name": "mine", "scope": "operator"})
        rotated = admin.post(f"{KEYS}/{theirs[3:15]}/rotate")
        revoked = admin.delete(f"{KEYS}/{theirs[3:15]}")

    assert [made.status_code, rotated.status_code, revoked.status_code] == [400, 404, 404]
    with api.http(theirs) as operator:
        assert operator.get(ALL).status_code == 200


def test_an_operators_key_is_made_on_the_command_line(api: Api, settings: ApiSettings):
    asked = ("keys", "create", "--org", "operators", "--scope", "operator", "--name", "desk")
    key = basin(*asked, env=environment(settings)).stdout.split()[-1]

    with api.http(key) as operator:
        assert operator.get(ALL).status_code == 200
