"""Every query of what is asked often goes by an index, however many rows there are."""

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import Engine, make_url

from app.db import Database
from app.jobs import lease, service
from app.jobs.shown import Showing
from app.jobs.spec import StepDone
from app.keys import service as keys
from app.main import create_app
from app.settings import ApiSettings
from app.tables import Base
from bench import filled
from tests.factories import PEPPER, jsonl

JOBS = "/v1/fine_tuning/jobs"
ROWS = 3000
FEW = {"organizations", "workers"}  # rows, ever
GROWING = set(Base.metadata.tables) - FEW
LOOKS = [
    "{job}",
    "{waiting}",
    "",
    "?after={id}",
    "?status=failed",
    "?status=failed&after={id}",
    "?metadata[team]=team-3",
    "?metadata[run]=777",
    "{job}/events",
    "{job}/events?type=metrics",
    "{job}/events?after={event}",
    "{job}/checkpoints",
    "{job}/rollouts",
    "{job}/rollouts?step=1",
    "{job}/attempts",
    "{job}/metrics",
    "{job}/metrics?agg=minmax&name=train_loss",
    "{job}/logs",
]
ONE = "SELECT id FROM jobs WHERE status = %s AND organization_id NOT LIKE 'org-other-%%' LIMIT 1"
Query = tuple[str, Any]


@pytest.fixture(scope="module")
def connection(own_url: str) -> Iterator[psycopg.Connection]:
    url = make_url(own_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
async def http(settings: ApiSettings, own: Database, own_url: str) -> AsyncIterator:
    async with own.transaction() as tx:
        secret = await keys.create(tx, organization="plans", name="test", pepper=PEPPER)
    app = create_app(settings.model_copy(update={"database_url": own_url}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://basin",
            headers={"Authorization": f"Bearer {secret}"},
        ) as client,
    ):
        yield client


@pytest.fixture(scope="module")
async def body(http: httpx.AsyncClient, connection: psycopg.Connection) -> dict[str, str]:
    """What a job is made with, where there are thousands already."""
    upload = {"file": ("t.jsonl", jsonl(12))}
    file = (await http.post("/v1/files", data={"purpose": "fine-tune"}, files=upload)).json()
    asked = {"model": "tiny-llama", "training_file": file["id"]}
    pattern = (await http.post(JOBS, json=asked)).json()["id"]
    filled.fill(connection, pattern, first=1, last=ROWS, points=4)
    connection.execute("SET session_replication_role = DEFAULT")
    connection.execute("VACUUM ANALYZE")
    return asked


@pytest.fixture
def asked() -> Iterator[list[Query]]:
    """The statements that are sent to any database, with their values."""
    sent: list[Query] = []

    def note(_connection, _cursor, statement: str, parameters: Any, _context, many: bool) -> None:
        sent.append((statement, parameters[0] if many else parameters))

    event.listen(Engine, "before_cursor_execute", note)
    yield sent
    event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.parametrize("look", LOOKS)
async def test_a_look_goes_by_indexes(
    look: str, http: httpx.AsyncClient, body, asked: list[Query], connection: psycopg.Connection
):
    job, waiting = (connection.execute(ONE, [s]).fetchone()[0] for s in ("succeeded", "queued"))
    line = connection.execute("SELECT id FROM job_events WHERE job_id = %s", [job]).fetchone()
    names = {"job": f"/{job}", "waiting": f"/{waiting}", "id": job, "event": line[0]}

    answer = await http.get(JOBS + look.format(**names))

    assert answer.status_code == 200, answer.text
    assert len(asked) >= 2  # of the key, and of what is looked at
    assert not slow(connection, asked)


async def test_the_few_jobs_with_a_tag_are_found_without_a_look_at_the_others(
    http: httpx.AsyncClient, body, asked: list[Query], connection: psycopg.Connection
):
    answer = await http.get(JOBS, params={"metadata[run]": "777"})

    assert len(answer.json()["data"]) == 1
    plans = [plan for query in asked for plan in nodes(explain(connection, query))]
    assert "ix_jobs_metadata" in {plan.get("Index Name") for plan in plans}


async def test_a_list_by_tags_is_planned_for_its_own_tags(own: Database, body):
    """A plan for any tag would be wrong for those of many jobs, or for those of few."""
    kept = "SELECT statement FROM pg_prepared_statements WHERE statement LIKE '%user_metadata @>%'"
    asked_often = {
        "metadata": {"team": "team-3"},
        "after": None,
        "limit": 20,
        "showing": Showing.of(own),
    }

    async with own.reading() as tx:
        owner = await tx.scalar(text("SELECT id FROM organizations WHERE name = 'plans'"))
    pages = [await service.list_jobs(own, owner, **asked_often) for _ in range(40)]
    async with own.reading() as tx, own.reading() as another:  # all that the pool keeps
        prepared = [(await each.scalars(text(kept))).all() for each in (tx, another)]

    assert all(len(page.data) == 20 for page in pages)
    assert prepared == [[], []]


async def test_a_submission_goes_by_indexes(
    http: httpx.AsyncClient, body, asked: list[Query], connection: psycopg.Connection
):
    answer = await http.post(JOBS, json=body, headers={"Idempotency-Key": "plans"})

    assert answer.status_code == 200, answer.text
    assert any(statement.startswith("INSERT INTO jobs") for statement, _ in asked)
    assert not slow(connection, asked)


async def test_a_worker_goes_by_indexes(
    own: Database, body, asked: list[Query], connection: psycopg.Connection
):
    async with own.transaction() as tx:
        held = await lease.claim(tx, "plans", free=1)
    async with own.transaction() as tx:
        await lease.renew(tx, held)
        step = StepDone(at=time.time(), step=1, epoch=0.0, metrics={"train_loss": 1.0})
        await lease.record(tx, held, [step])
        await lease.add_log(tx, held, "a line\n")

    assert not slow(connection, asked)


def test_a_query_without_an_index_is_found_out(body, connection: psycopg.Connection):
    by_suffix = ("SELECT id FROM jobs WHERE suffix = %(suffix)s", {"suffix": "x"})
    in_order = ("SELECT id FROM jobs WHERE suffix = 'x' ORDER BY id", {})

    assert [len(slow(connection, [query])) for query in (by_suffix, in_order)] == [1, 1]


def slow(connection: psycopg.Connection, queries: list[Query]) -> list[str]:
    """Return the scans that look at every row of a table that grows, with their statement."""
    partial = "SELECT indexrelid::regclass::text FROM pg_index WHERE indpred IS NOT NULL"
    small = {name for (name,) in connection.execute(partial)}
    connection.execute("SET enable_seqscan = off")  # so that it is taken only where it must
    return [
        f"{node['Node Type']} of {node['Relation Name']}: {query[0]}"
        for query in queries
        for node in nodes(explain(connection, query))
        if looks_at_all(node, small)
    ]


def explain(connection: psycopg.Connection, query: Query) -> dict[str, Any]:
    statement, values = query
    told = connection.execute(f"EXPLAIN (FORMAT JSON) {statement}", values).fetchone()
    return told[0][0]["Plan"]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def looks_at_all(node: dict[str, Any], small: set[str]) -> bool:
    """Say whether a scan reads a table that grows, or an index of all its rows, from end to end."""
    if node.get("Relation Name") not in GROWING:
        return False
    if node["Node Type"] == "Seq Scan":
        return True
    by_index = node["Node Type"] in ("Index Scan", "Index Only Scan")
    return by_index and "Index Cond" not in node and node["Index Name"] not in small
