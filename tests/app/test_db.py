"""What the pools of the database do that no route shows."""

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import connected
from app.main import create_app
from app.settings import ApiSettings
from tests.app.route_table import declared


@pytest.fixture
def url(settings: ApiSettings) -> str:
    return settings.database_url


@pytest.mark.parametrize("way", ["transaction", "reading"])
async def test_a_connection_that_the_server_has_closed_is_not_handed_out(url: str, way: str):
    async with connected(url, pool_size=1, max_overflow=0) as db:
        async with getattr(db, way)() as tx:
            first = await tx.scalar(text("SELECT pg_backend_pid()"))
        end(url, first)

        async with getattr(db, way)() as tx:
            second = await tx.scalar(text("SELECT pg_backend_pid()"))

    assert second != first


async def test_a_read_begins_no_transaction(url: str):
    async with connected(url) as db, db.reading() as tx:
        moments = [await tx.scalar(text("SELECT now()")) for _ in range(2)]

    assert moments[0] < moments[1]  # of one transaction they would be the same


async def test_a_read_sees_what_was_committed_meanwhile(url: str):
    async with connected(url) as db:
        async with db.transaction() as tx:
            await tx.execute(text("CREATE TABLE IF NOT EXISTS seen (n int)"))
        async with db.reading() as tx:
            before = await count(tx)
            async with db.transaction() as other:
                await other.execute(text("INSERT INTO seen VALUES (1)"))
            after = await count(tx)
        async with db.transaction() as tx:
            await tx.execute(text("DROP TABLE seen"))

    assert after == before + 1


async def test_who_finds_no_connection_free_is_told_to_come_back(settings: ApiSettings):
    app = create_app(settings)

    @app.get("/waits")
    async def waits() -> None:
        raise NoConnectionFree

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://basin") as http:
        answer = await http.get("/waits")

    assert answer.status_code == 503 and answer.json()["error"]["message"]


def test_nothing_that_a_route_depends_on_takes_a_thread():
    """FastAPI runs a plain function in a thread, which costs more than a query."""
    routes = [route for route in declared() if isinstance(route, APIRoute)]
    needed = {each.call for route in routes for each in all_of(route.dependant.dependencies)}

    plain = {call for call in needed if not (is_async(call) or isinstance(call, SecurityBase))}

    assert len(needed) > 5 and not plain


def all_of(dependencies: Iterable[Dependant]) -> Iterator[Dependant]:
    for each in dependencies:
        yield each
        yield from all_of(each.dependencies)


def is_async(call: Any) -> bool:
    return inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call)


async def count(tx: AsyncSession) -> int:
    return (await tx.execute(text("SELECT count(*) FROM seen"))).scalar_one()


def end(url: str, pid: int) -> None:
    """Have the server close a session, as its restart does to all."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
