"""Databases of a module's own, for what looks at all rows there are."""

from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import URL, make_url

from app import migrate
from app.db import Database, connected
from app.embedded import Services
from app.ids import token

TEMPLATE = "migrated"


def administer(services: Services, statement: str, *names: str) -> None:
    url = make_url(services.database_url).set(drivername="postgresql")
    text = url.render_as_string(hide_password=False)
    with closing(psycopg.connect(text, autocommit=True)) as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def url_of(services: Services, database: str) -> str:
    url: URL = make_url(services.database_url).set(database=database)
    return url.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def migrated(services: Services) -> str:
    """The name of an empty database with the newest schema, to copy."""
    administer(services, "CREATE DATABASE {}", TEMPLATE)
    migrate.upgrade(url_of(services, TEMPLATE))
    return TEMPLATE


@pytest.fixture(scope="module")
def own_url(services: Services, migrated: str) -> Iterator[str]:
    name = f"own-{token(8)}"
    administer(services, "CREATE DATABASE {} TEMPLATE {}", name, migrated)
    yield url_of(services, name)
    administer(services, "DROP DATABASE {} WITH (FORCE)", name)


@pytest.fixture(scope="module")
async def own(own_url: str) -> AsyncIterator[Database]:
    """A database that no other module writes to."""
    async with connected(own_url) as database:
        yield database
