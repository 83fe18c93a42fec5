"""What a key may do, and for how long; read off the table of routes where it holds for each."""

import re

import httpx
import pytest

from app.keys.service import Scope
from app.settings import ApiSettings
from tests.app.records import run_now
from tests.app.route_table import OPEN, Route, changing_routes, closed_routes, routes
from tests.app.test_cli import basin
from tests.conftest import Api, environment

ENVELOPE = {"message", "type", "param", "code"}
NOTHING = {"job_id": "ftjob-x", "checkpoint_id": "ftckpt_x", "file_id": "file-x"}


def somewhere(route: Route) -> str:
    return route.at({name: NOTHING.get(name, "nothing") for name in route.parameters})


def test_every_route_asks_for_a_key_but_health_and_the_docs(api: Api):
    asked = [route for route in closed_routes() if route.method != "HEAD"]

    answers = {str(each): httpx.request(each.method, api.url + somewhere(each)) for each in asked}

    assert len(asked) > 10
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(
        answers, 401
    )
    assert all(set(answer.json()["error"]) == ENVELOPE for answer in answers.values())


def test_the_open_routes_are_there_and_answer_without_a_key(api: Api):
    assert {route.path for route in routes()} >= OPEN
    for path in OPEN:
        assert httpx.get(api.url + path).status_code in (200, 503)


def test_a_read_key_is_refused_by_every_route_that_changes_something(api: Api):
    changes = changing_routes()

    with api.http(api.key("reads", Scope.READ)) as reader:
        answers = {
            str(each): reader.request(each.method, api.url + somewhere(each)) for each in changes
        }

    assert len(changes) > 4
    for name, answer in answers.items():
        error = answer.json()["error"]
        assert set(error) == ENVELOPE
        if " /v1/organizations" in name:
            assert (answer.status_code, error["code"]) == (404, "not_found"), name
        else:
            assert (answer.status_code, error["code"]) == (403, "insufficient_permissions"), name
            assert re.search(r"scope '(write|admin)'", error["message"])


@pytest.mark.parametrize("scope", list(Scope))
def test_a_key_is_told_whose_it_is_and_what_it_may_do(api: Api, scope: Scope):
    key = api.key("introduced", scope)

    with api.http(key) as http:
        told = http.get("/organization/keys/self").json()

    assert (told["id"], told["scope"], told["state"]) == (key[3:15], scope, "live")
    assert told["organization"]["name"] == "introduced"
    assert told["organization"]["id"].startswith("org-")
    assert key[15:] not in str(told)


@pytest.mark.parametrize("scope", list(Scope))
def test_every_scope_may_look(api: Api, scope: Scope):
    with api.http(api.key("looks", scope)) as http:
        looks = [http.get(path).status_code for path in ("/models", "/files", "/fine_tuning/jobs")]

    assert looks == [200, 200, 200]


@pytest.mark.parametrize("scope", [Scope.WRITE, Scope.ADMIN])
def test_a_key_that_may_write_submits_and_deletes(api: Api, scope: Scope):
    with api.http(api.key("writes", scope)) as http:
        file = {"file": ("notes.txt", b"x")}
        made = http.post("/files", files=file, data={"purpose": "user_data"}).json()["id"]

        assert http.delete(f"/files/{made}").status_code == 200


def test_a_key_is_no_good_once_it_has_expired(api: Api, settings: ApiSettings):
    env = environment(settings)
    made = basin("keys", "create", "--org", "brief", "--expires-days", "2", env=env)
    key = made.stdout.strip()

    with api.http(key) as http:
        before = http.get("/models").status_code
        pass_time(settings, key[3:15], "expires_at", "2 days")
        after = http.get("/models").status_code

    assert (before, after) == (200, 401)
    listed = basin("keys", "list", env=env | {"COLUMNS": "200"}).stdout
    (line,) = [line for line in listed.splitlines() if key[3:15] in line]
    assert "expired" in line and "write" in line


def test_a_rotated_key_has_a_new_secret_at_once_and_the_old_one_ends(
    api: Api, settings: ApiSettings
):
    env = environment(settings)
    old = api.key("rotates")

    new = basin("keys", "rotate", old[3:15], env=env).stdout.strip()

    assert new[:15] == old[:15] and new != old
    assert [works(api, key) for key in (old, new)] == [False, True]


def test_in_its_grace_the_old_secret_works_beside_the_new_one(api: Api, settings: ApiSettings):
    env = environment(settings)
    first = api.key("graceful")
    key_id = first[3:15]

    second = basin("keys", "rotate", key_id, "--grace-minutes", "5", env=env).stdout.strip()
    in_grace = [works(api, key) for key in (first, second)]
    pass_time(settings, key_id, "previous_until", "5 minutes")
    after_it = [works(api, key) for key in (first, second)]

    assert in_grace == [True, True] and after_it == [False, True]


def test_a_second_rotation_ends_the_grace_of_the_first(api: Api, settings: ApiSettings):
    env = environment(settings)
    first = api.key("hurried")

    rotated = [
        basin("keys", "rotate", first[3:15], "--grace-minutes", "5", env=env).stdout.strip()
        for _ in range(2)
    ]

    assert [works(api, key) for key in (first, *rotated)] == [False, True, True]


def test_revoking_ends_both_secrets_of_a_rotated_key(api: Api, settings: ApiSettings):
    env = environment(settings)
    old = api.key("leaked")
    new = basin("keys", "rotate", old[3:15], "--grace-minutes", "60", env=env).stdout.strip()

    basin("keys", "revoke", old[3:15], env=env)

    assert [works(api, key) for key in (old, new)] == [False, False]
    refused = basin("keys", "rotate", old[3:15], env=env)
    assert refused.returncode == 2 and "revoked" in refused.stderr


def works(api: Api, key: str) -> bool:
    with api.http(key) as http:
        return http.get("/models").status_code == 200


def pass_time(settings: ApiSettings, key_id: str, column: str, interval: str) -> None:
    """Let a moment of a key's come sooner, which is time going by."""
    statement = f"UPDATE api_keys SET {column} = {column} - interval '{interval}' WHERE id = :id"
    run_now(settings, statement, id=key_id)
