"""Environments are listed with what they take, and a job's arguments are held to it."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.db import Database
from app.environments import catalog
from app.environments.arguments import check_arguments
from app.errors import InvalidRequest
from app.ids import token
from app.settings import GAMES_DIR, ApiSettings
from app.tables import Worker
from tests.app.basin import Basin, basin_of
from tests.app.records import run_now
from tests.conftest import Api
from tests.environments import register
from worker.devices import DevicePool
from worker.sweep import pulse

OWN = {"alfworld", "frozen-lake", "key-door", "text-world"}
ENVIRONMENT = "method.reinforcement.environment"


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is installed is looked for anew, and not remembered."""
    catalog.known.cache_clear()
    yield
    monkeypatch.undo()
    catalog.known.cache_clear()


def test_what_is_installed_is_listed_with_its_arguments(http: httpx.Client):
    listed = {each["id"]: each for each in http.get("/environments").json()["data"]}

    room = listed["key-door"]
    assert set(listed) >= OWN and "key" in room["summary"] and room["object"] == "environment"
    assert room["defaults"] == {"width": 5, "height": 3, "max_steps": 40}
    assert room["arguments"]["properties"]["width"]["maximum"] == 15
    assert room["arguments"]["additionalProperties"] is False


def test_who_has_no_key_is_told_of_none(api: Api):
    assert httpx.get(f"{api.url}/v1/environments").status_code == 401


def test_workers_that_live_are_named_where_they_offer_it(api: Api, http: httpx.Client):
    insert = (
        "INSERT INTO workers (id, hostname, devices, seen_at)"
        " VALUES (:id, 'here', :devices ::jsonb, now() - CAST(:silent AS interval))"
    )
    alive, silent, old = (f"{name}-{token(6)}" for name in ("alive", "silent", "old"))
    offers: dict[str, Any] = {"all": ["cpu"], "environments": ["key-door"]}
    for name, devices, seconds in (
        (alive, offers, "0s"),
        (silent, offers, "1h"),
        (old, {"all": ["cpu"]}, "0s"),
    ):
        run_now(api.settings, insert, id=name, devices=json.dumps(devices), silent=seconds)

    listed = {each["id"]: each["workers"] for each in http.get("/environments").json()["data"]}
    run_now(api.settings, "DELETE FROM workers WHERE hostname = 'here'")

    assert alive in listed["key-door"] and alive not in listed["frozen-lake"]
    assert not {silent, old} & set(listed["key-door"])


async def test_a_worker_says_what_it_can_run(
    settings: ApiSettings, db: Database, afresh: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(GAMES_DIR, raising=False)
    name, stop = f"says-{token(6)}", threading.Event()
    beating = asyncio.create_task(
        pulse(
            settings.database_url,
            worker=name,
            hostname="here",
            devices=DevicePool(["cpu"]),
            previews_on=None,
            start=lambda: None,
            stop=stop,
        )
    )
    found = None
    while found is None and not beating.done():
        async with db.transaction() as tx:
            found = await tx.get(Worker, name)
    stop.set()
    await beating

    assert found is not None
    assert {"key-door", "frozen-lake"} <= set(found.devices["environments"])
    assert "alfworld" not in found.devices["environments"]  # its games are not here


def test_arguments_that_are_left_out_are_filled_in():
    assert check_arguments("key-door", {"width": 7}) == {"width": 7, "height": 3, "max_steps": 40}
    assert check_arguments("frozen-lake", {"frozen": 1})["frozen"] == 1.0


@pytest.mark.parametrize(
    ("name", "args", "param", "said"),
    [
        ("key-doors", {}, "name", "there are alfworld, frozen-lake, key-door"),
        ("key-door", {"width": 16}, "args.width", "less than or equal to 15"),
        ("key-door", {"width": "7"}, "args.width", "valid integer"),
        ("key-door", {"wide": 7}, "args.wide", "Unexpected keyword"),
        ("frozen-lake", {"frozen": float("nan")}, "args.frozen", "finite"),
        ("alfworld", {"split": "../secrets"}, "args.split", "'train'"),
    ],
)
def test_other_arguments_are_refused_by_name(
    name: str, args: dict[str, Any], param: str, said: str
):
    with pytest.raises(InvalidRequest) as refused:
        check_arguments(name, args)

    assert refused.value.param == f"{ENVIRONMENT}.{param}"
    assert said in refused.value.message


def test_one_of_somebody_elses_is_found_by_its_entry_point(
    tmp_path: Path, afresh: None, monkeypatch: pytest.MonkeyPatch
):
    target = "tests.worker.environments.misbehaving:Misbehaving"
    monkeypatch.syspath_prepend(register(tmp_path, {"theirs": target, "broken": "nowhere:Gone"}))

    known = catalog.known()

    assert OWN | {"theirs"} == set(known)
    assert check_arguments("theirs", {}) == {"start": "well"}
    assert "theirs" in catalog.runnable()


@pytest.fixture(scope="module")
def basin(api: Api, organization: str) -> Basin:
    return basin_of(api, api.key(organization))


def test_the_command_lists_them(basin: Basin):
    assert "width=5" in basin("environments", "list").stdout
    assert {each["id"] for each in basin.json("environments", "list")["data"]} >= OWN


def test_the_command_writes_episodes(basin: Basin):
    written = basin("environments", "episodes", "key-door", "--count", "3", "--seed", "7").stdout

    assert [json.loads(line) for line in written.splitlines()] == [
        {"episode": {"seed": seed}} for seed in (7, 8, 9)
    ]
    basin("environments", "episodes", "key-doors", "--count", "3", "--seed", "7", code=2)
