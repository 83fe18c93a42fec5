"""The engine and the transaction: the one place that commits."""

import asyncio
import select
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from psycopg import AsyncConnection as Driver
from psycopg import AsyncCursor
from psycopg.pq import Format
from sqlalchemy import event, func
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

Promise = Callable[[], None]
_PROMISES = "promises"
PREPARE = "prepare_threshold"


class Database:
    """One PostgreSQL, reached through two pools that belong to one event loop.

    The connections of the second one only read: each statement commits itself, and there is nothing
    to begin, to end or to take back.
    """

    def __init__(self, url: str, *, pool_size: int = 10, max_overflow: int = 10) -> None:
        # Its errors go into logs: without what callers sent.
        where, arguments = address(url)
        shared = {
            "pool_size": pool_size,
            "max_overflow": max_overflow,
            "hide_parameters": True,
            "connect_args": arguments,
        }
        self._engine = create_async_engine(where, **shared)
        self._reading = create_async_engine(
            where, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True, **shared
        )
        for engine in (self._engine, self._reading):
            event.listen(engine.sync_engine, "checkout", _refuse_what_was_closed)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        self._readers = async_sessionmaker(self._reading, autoflush=False, expire_on_commit=False)

    async def close(self) -> None:
        await self._engine.dispose()
        await self._reading.dispose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """Commit what happens inside, or nothing of it; then keep the promises made in it."""
        async with self._sessions() as session:
            try:
                yield session
            except BaseException:
                await session.rollback()
                raise
            await session.commit()
            promises: list[Promise] = session.info.pop(_PROMISES, [])
        if promises:
            await asyncio.to_thread(_keep, promises)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """Read what is committed: each statement is a transaction, as there is nothing to commit.

        A statement sees what was committed before it, just as in `transaction`; without BEGIN and
        COMMIT it costs one round trip where that costs three.
        """
        async with self._readers() as session:
            yield session

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[AsyncConnection]:
        """Read columns as `reading` does, for two thirds of its cost: it makes no objects."""
        async with self._reading.connect() as connection:
            yield connection


@asynccontextmanager
async def connected(
    url: str, *, pool_size: int = 2, max_overflow: int = 10
) -> AsyncIterator[Database]:
    """Open a database for the length of a block.

    It keeps up to `pool_size` connections; those in overflow are made and ended with each use.
    """
    database = Database(url, pool_size=pool_size, max_overflow=max_overflow)
    try:
        yield database
    finally:
        await database.close()


class _BinaryCursor(AsyncCursor[Any]):
    """Asks for results in binary form."""

    def __init__(self, connection: Driver[Any], **options: Any) -> None:
        super().__init__(connection, **options)
        self.format = Format.BINARY


def in_binary(tx: AsyncSession | AsyncConnection) -> AbstractAsyncContextManager[None]:
    """Have what is selected in the block come in binary form.

    SQLAlchemy asks for text, in which bytes are hexadecimal: twice as long, and slow to read.
    """
    return _driver_with(tx, "cursor_factory", _BinaryCursor)


def address(url: str) -> tuple[URL, dict[str, Any]]:
    """Return where to connect, and psycopg's arguments for it.

    `?prepare_threshold=none` prepares no statements: what pools transactions, such as PgBouncer,
    may run each on another connection of the server, which knows nothing of them.

    Raises:
        ValueError: it is given and is no number, nor none.
    """
    found = make_url(url)
    asked = found.query.get(PREPARE)
    if asked is None:
        return found, {}
    threshold = None if asked == "none" else int(str(asked))
    return found.difference_update_query([PREPARE]), {PREPARE: threshold}


def planned_anew(tx: AsyncSession | AsyncConnection) -> AbstractAsyncContextManager[None]:
    """Have PostgreSQL plan the statements inside for the values that they come with.

    Those that are sent often are prepared otherwise, and in the end planned once for any values.
    """
    return _driver_with(tx, PREPARE, None)


@asynccontextmanager
async def _driver_with(
    tx: AsyncSession | AsyncConnection, name: str, value: object
) -> AsyncIterator[None]:
    """Set an attribute of psycopg's connection for the length of the block."""
    connection = await tx.connection() if isinstance(tx, AsyncSession) else tx
    driver = (await connection.get_raw_connection()).driver_connection
    before = getattr(driver, name)
    setattr(driver, name, value)
    try:
        yield
    finally:
        setattr(driver, name, before)


def after_commit(tx: AsyncSession, promise: Promise) -> None:
    """Call `promise` once the transaction is committed; never, when it is not."""
    tx.info.setdefault(_PROMISES, []).append(promise)


def from_now(*, days: int = 0, minutes: int = 0, seconds: float = 0) -> Any:
    """Return the moment so long from now, or before it, by the database's clock."""
    return func.now() + func.make_interval(0, 0, 0, days, 0, minutes, seconds)


def _keep(promises: list[Promise]) -> None:
    for promise in promises:
        promise()


def _refuse_what_was_closed(connection: Any, *_: object) -> None:
    """Have the pool connect anew when the server has closed a connection that lay in it.

    A server that ends a session says so, and closes the socket: then there is something to read
    where nothing was asked. To see that takes no round trip, which a ping would.

    Raises:
        InvalidatePoolError: so it is with this one, and then with the others.
    """
    if select.select([connection.driver_connection.fileno()], [], [], 0)[0]:
        raise InvalidatePoolError
