"""Shown jobs are kept, and still as they are now, and their owner's alone."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Column, event, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Engine, make_url

from app.db import Database
from app.jobs.shown import VERSION, Kept
from app.jobs.waits import Lookout, Waiting
from app.keys import service as keys
from app.main import create_app
from app.settings import ApiSettings
from app.tables import Job
from tests.factories import PEPPER, jsonl

JOBS = "/v1/fine_tuning/jobs"
COLUMNS = [column for column in Job.__table__.columns if not column.primary_key]
ANOTHER = {
    str: "coalesce({0}, '') || 'x'",
    int: "coalesce({0}, 0) + 1",
    JSONB: """coalesce({0}, '{{}}') || '{{"x": 1}}'""",
}
LATER = "coalesce({0}, now()) + interval '1 microsecond'"


@pytest.fixture(scope="module")
def connection(own_url: str) -> Iterator[psycopg.Connection]:
    """Who changes rows as nobody may: no trigger and no foreign key objects."""
    url = make_url(own_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        yield connection


@pytest.fixture(scope="module")
async def clients(
    settings: ApiSettings, own: Database, own_url: str
) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Two organizations' clients of one API process."""
    async with own.transaction() as tx:
        made = [
            await keys.create(tx, organization=name, name="test", pepper=PEPPER)
            for name in ("mine", "theirs")
        ]
    app = create_app(settings.model_copy(update={"database_url": own_url}))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app):
        yield [
            httpx.AsyncClient(
                transport=transport,
                base_url="http://basin",
                headers={"Authorization": f"Bearer {secret}"},
            )
            for secret in made
        ]


@pytest.fixture(scope="module")
async def jobs(clients: list[httpx.AsyncClient]) -> list[str]:
    """Some of the first's jobs, newest first."""
    upload = {"file": ("t.jsonl", jsonl(12))}
    file = await clients[0].post("/v1/files", data={"purpose": "fine-tune"}, files=upload)
    asked = {"model": "tiny-llama", "training_file": file.json()["id"]}
    made = [
        (await clients[0].post(JOBS, json=asked | {"metadata": {"n": str(n)}})).json()
        for n in range(4)
    ]
    return [job["id"] for job in reversed(made)]


async def looked_at(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    answer = await client.get(f"{JOBS}/{job_id}")
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def listed(client: httpx.AsyncClient, query: str = "") -> list[dict[str, Any]]:
    answer = await client.get(JOBS + query)
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_another_value_in_any_column_makes_another_version(
    column: Column[Any], jobs: list[str], connection: psycopg.Connection
):
    kind = JSONB if isinstance(column.type, JSONB) else column.type.python_type
    name = sql.Identifier(column.name)
    change = sql.SQL("UPDATE jobs SET {0} = " + ANOTHER.get(kind, LATER)).format(name)
    look = f"SELECT {VERSION.element} FROM jobs WHERE id = %s"

    with connection.transaction(force_rollback=True):
        before = connection.execute(look, [jobs[0]]).fetchall()
        same = connection.execute(look, [jobs[0]]).fetchall()
        connection.execute(change + sql.SQL(" WHERE id = %s"), [jobs[0]])
        after = connection.execute(look, [jobs[0]]).fetchall()

    assert before == same
    assert before != after


async def test_a_list_shows_what_a_look_at_each_shows(clients, jobs: list[str]):
    first, again = await listed(clients[0]), await listed(clients[0])

    assert first == again
    assert [job["id"] for job in first] == jobs
    assert first == [await looked_at(clients[0], job_id) for job_id in jobs]
    assert [job["queue"]["position"] for job in first] == [4, 3, 2, 1]


async def test_what_is_kept_is_what_a_job_is_that_was_not(
    clients, jobs: list[str], connection: psycopg.Connection
):
    kept = await looked_at(clients[0], jobs[3])

    paused = (await clients[0].post(f"{JOBS}/{jobs[3]}/pause")).json()  # serialized anew
    connection.execute("UPDATE jobs SET status = 'queued' WHERE id = %s", [jobs[3]])

    assert paused == kept | {"status": "paused", "queue": None}
    assert await looked_at(clients[0], jobs[3]) == kept


async def test_pages_of_kept_jobs_are_cut_as_others(clients, jobs: list[str]):
    for query in ("?limit=2", f"?limit=2&after={jobs[1]}", f"?after={jobs[-1]}", "?limit=0") * 2:
        page = (await clients[0].get(JOBS + query)).json()
        ids = [job["id"] for job in page["data"]]

        first, last = (ids[0], ids[-1]) if ids else (None, None)
        assert (page["object"], page["first_id"], page["last_id"]) == ("list", first, last)
        assert page["has_more"] is (query in ("?limit=2", "?limit=0"))


async def test_a_change_is_seen_at_the_next_look(
    clients, jobs: list[str], connection: psycopg.Connection
):
    before = await listed(clients[0])

    connection.execute("UPDATE jobs SET step = step + 1, priority = 9 WHERE id = %s", [jobs[1]])
    after = await listed(clients[0])

    assert after[1]["progress"]["step"] == before[1]["progress"]["step"] + 1
    assert (after[1]["priority"], after[1]["queue"]["position"]) == (9, 1)
    assert [after[0], *after[2:]] != before  # the places of others
    unplaced = [[job | {"queue": None} for job in page] for page in (before, after)]
    assert [unplaced[1][0], *unplaced[1][2:]] == [unplaced[0][0], *unplaced[0][2:]]


async def test_a_look_at_one_job_sees_each_change_of_it(
    clients, jobs: list[str], connection: psycopg.Connection
):
    before = [await looked_at(clients[0], jobs[2]) for _ in range(2)]

    connection.execute("UPDATE jobs SET step = step + 1 WHERE id = %s", [jobs[2]])
    after = await looked_at(clients[0], jobs[2])
    connection.execute("UPDATE jobs SET status = 'paused' WHERE id = %s", [jobs[2]])
    paused = await looked_at(clients[0], jobs[2])
    connection.execute("UPDATE jobs SET status = 'queued' WHERE id = %s", [jobs[2]])

    assert before[0] == before[1]
    assert after["progress"]["step"] == before[0]["progress"]["step"] + 1
    assert (after["status"], paused["status"], paused["queue"]) == ("queued", "paused", None)
    assert await looked_at(clients[0], jobs[2]) == after


async def test_jobs_that_are_looked_at_together_are_their_owners_alone(clients, jobs: list[str]):
    asked = [(client, job_id) for client in clients for job_id in [*jobs, "ftjob-none"]] * 5

    answers = await asyncio.gather(*(client.get(f"{JOBS}/{job_id}") for client, job_id in asked))

    for (client, job_id), answer in zip(asked, answers, strict=True):
        own = client is clients[0] and job_id in jobs
        assert answer.status_code == (200 if own else 404)
        assert not own or answer.json()["id"] == job_id


async def test_what_is_kept_is_shown_to_its_owner_alone(clients, jobs: list[str]):
    assert len(await listed(clients[0])) == len(jobs)

    for query in ("", "?status=queued", "?metadata[n]=1", "?limit=100"):
        assert await listed(clients[1], query) == []
    assert (await clients[1].get(f"{JOBS}?after={jobs[0]}")).status_code == 404


async def test_a_job_that_changes_hands_is_gone_from_the_first_list(
    clients, jobs: list[str], connection: psycopg.Connection
):
    assert await listed(clients[0])
    give = "UPDATE jobs SET organization_id = (SELECT id FROM organizations WHERE name = %s)"

    connection.execute(give, ["theirs"])
    theirs = await listed(clients[0]), await listed(clients[1])
    connection.execute(give, ["mine"])

    assert [len(each) for each in theirs] == [0, len(jobs)]
    assert {job["organization_id"] for job in theirs[1]} == {theirs[1][0]["organization_id"]}
    assert theirs[1][0]["organization_id"] != (await listed(clients[0]))[0]["organization_id"]


async def test_more_lists_at_once_than_connections_are_all_answered(clients, jobs: list[str]):
    pages = await asyncio.gather(*(listed(clients[0]) for _ in range(40)))

    assert all(page == pages[0] for page in pages)


async def test_who_asks_at_the_same_time_is_told_by_one_look(own: Database, jobs: list[str]):
    asked: list[str] = []

    def note(_connection, _cursor, statement: str, *_: object) -> None:
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        lookout = Lookout(own)
        seen = await asyncio.gather(*(lookout.see([Waiting(job, 1, None)]) for job in jobs * 10))
    finally:
        event.remove(Engine, "before_cursor_execute", note)

    assert [list(each) for each in seen] == [[job_id] for job_id in jobs * 10]
    assert sum("row_number" in statement for statement in asked) == 1


async def test_a_look_that_fails_fails_for_those_who_asked_and_no_others(
    own: Database, jobs: list[str], connection: psycopg.Connection
):
    lookout = Lookout(own)
    waiting = [Waiting(jobs[0], 1, None)]
    connection.execute("ALTER TABLE workers RENAME TO away")

    failed = await asyncio.gather(
        lookout.see(waiting), lookout.see(waiting), return_exceptions=True
    )
    connection.execute("ALTER TABLE away RENAME TO workers")

    assert all(isinstance(each, Exception) for each in failed)
    assert list(await lookout.see(waiting)) == [jobs[0]]


async def test_of_more_jobs_than_are_kept_the_last_ones_are(own: Database, jobs: list[str]):
    kept = Kept(most=2)
    query = select(Job, Job.id, VERSION).where(Job.id.in_(jobs)).order_by(Job.created_at)
    async with own.reading() as tx:
        rows = (await tx.execute(query)).all()
    shown = [kept.show(job, version) for job, _, version in rows]

    assert kept.find(rows[2:]) == shown[2:]
    assert kept.find(rows[1:]) is None
