"""The engine and the transaction: the one place that commits."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection, AsyncCursor
from psycopg.pq import Format
from sqlalchemy import func
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

Promise = Callable[[], None]
_PROMISES = "promises"
PREPARE = "prepare_threshold"


class Database:
    """One PostgreSQL, reached through a pool that belongs to one event loop."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        # Its errors go into logs: without what callers sent.
        where, arguments = address(url)
        self._engine = create_async_engine(
            where,
            pool_size=pool_size,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args=arguments,
        )
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)

    async def close(self) -> None:
        await self._engine.dispose()

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
        for promise in promises:
            await asyncio.to_thread(promise)


@asynccontextmanager
async def connected(url: str, *, pool_size: int = 2) -> AsyncIterator[Database]:
    """Open a database for the length of a block."""
    database = Database(url, pool_size=pool_size)
    try:
        yield database
    finally:
        await database.close()


class _BinaryCursor(AsyncCursor[Any]):
    """Asks for results in binary form."""

    def __init__(self, connection: AsyncConnection[Any], **options: Any) -> None:
        super().__init__(connection, **options)
        self.format = Format.BINARY


@asynccontextmanager
async def in_binary(tx: AsyncSession) -> AsyncIterator[None]:
    """Have what is selected in the block come in binary form.

    SQLAlchemy asks for text, in which bytes are hexadecimal: twice as long, and slow to read.
    """
    connection = (await (await tx.connection()).get_raw_connection()).driver_connection
    assert isinstance(connection, AsyncConnection)
    plain, connection.cursor_factory = connection.cursor_factory, _BinaryCursor
    try:
        yield
    finally:
        connection.cursor_factory = plain


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


def after_commit(tx: AsyncSession, promise: Promise) -> None:
    """Call `promise` once the transaction is committed; never, when it is not."""
    tx.info.setdefault(_PROMISES, []).append(promise)


def from_now(*, days: int = 0, minutes: int = 0, seconds: float = 0) -> Any:
    """Return the moment so long from now, or before it, by the database's clock."""
    return func.now() + func.make_interval(0, 0, 0, days, 0, minutes, seconds)
