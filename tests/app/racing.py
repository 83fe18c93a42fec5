"""Two transactions that meet, in an order that no luck decides."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database

Operation = Callable[[AsyncSession], Awaitable[Any]]


class SilentBell:
    """Every message is lost: workers look by themselves."""

    def wake(self, job_id: str) -> None:
        pass


async def commit(db: Database, operation: Operation) -> Any:
    """Do something in a transaction of its own."""
    async with db.transaction() as tx:
        return await operation(tx)


async def overtake(db: Database, first: Operation, second: Operation) -> Any:
    """Let `second` begin when `first` is done but not committed; return its result, or its error.

    It either ends at once or waits for a row that the first holds. Takes three connections.
    """
    async with db.transaction() as tx:
        await first(tx)
        await tx.flush()
        late = asyncio.create_task(commit(db, second))
        while not late.done() and not await commit(db, somebody_waits):
            await asyncio.sleep(0.001)
    return (await asyncio.gather(late, return_exceptions=True))[0]


async def somebody_waits(tx: AsyncSession) -> bool:
    """Say whether a transaction waits for another."""
    waits = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock')"
    )
    return bool(await tx.scalar(text(waits)))
