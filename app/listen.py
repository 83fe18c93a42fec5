"""Hears what PostgreSQL notifies of, on one connection of its own.

A notification only says that it is worth looking: the rows are the truth, and whoever listens looks
again after a while anyway.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import psycopg
import structlog
from psycopg import AsyncConnection, sql

from app.db import address

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 5
SHORTEST_WAIT_S, LONGEST_WAIT_S = 0.25, 8.0  # before a lost connection is made anew
CHECK_S = 30.0  # of silence: then the server is asked whether it is still there

Heard = Callable[[str | None], None]


@asynccontextmanager
async def listening(database_url: str, channels: Mapping[str, Heard]) -> AsyncIterator[None]:
    """Call a channel's function with the payload of each notification, for the length of the block.

    And with None when some may have been missed: the connection has just been made.
    """
    task = asyncio.create_task(_listen(database_url, channels))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _listen(database_url: str, channels: Mapping[str, Heard]) -> None:
    url = address(database_url)[0].set(drivername="postgresql")
    conninfo, wait_s = url.render_as_string(hide_password=False), SHORTEST_WAIT_S
    while True:
        try:
            async with await AsyncConnection.connect(
                conninfo, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S
            ) as connection:
                for channel, heard in channels.items():
                    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                    heard(None)
                wait_s = SHORTEST_WAIT_S
                await _pass_on(connection, channels)
        except (psycopg.Error, TimeoutError) as error:
            log.warning("listener.disconnected", error=str(error), again_in_s=wait_s)
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


async def _pass_on(connection: AsyncConnection, channels: Mapping[str, Heard]) -> None:
    while True:
        async for notice in connection.notifies(timeout=CHECK_S):
            channels[notice.channel](notice.payload)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await connection.execute("SELECT 1")
