"""Sends what is due: many at once, few of one organization, and none waits for another."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database

log = structlog.get_logger()


class Owned(Protocol):
    """Something to send."""

    @property
    def organization_id(self) -> str:
        """Whose it is."""


Item = TypeVar("Item", bound=Owned)
Found = TypeVar("Found", bound=Owned, covariant=True)


class Claim(Protocol[Found]):
    """Takes what is due the longest, if anything is.

    `passing_over` are organizations that have enough in flight.
    """

    async def __call__(
        self, tx: AsyncSession, *, passing_over: Collection[str]
    ) -> Found | None: ...


@dataclass(frozen=True)
class Pace:
    """How often to look, and how much may be in flight at once, in all and of one organization."""

    poll_s: float
    most_at_once: int
    most_of_one: int


async def send_forever(
    db: Database,
    claim: Claim[Item],
    send: Callable[[Item], Coroutine[None, None, None]],
    pace: Pace,
) -> None:
    """Send what is due, until cancelled; a database that is away is waited for.

    `send` raises nothing: one must not end the others.
    """
    async with asyncio.TaskGroup() as group:
        flying: dict[asyncio.Task[None], str] = {}
        while True:
            try:
                while due := await _next(db, claim, pace, list(flying.values())):
                    flying[group.create_task(send(due))] = due.organization_id
            except SQLAlchemyError as error:
                log.warning("sending.postponed", error=str(error))
            await asyncio.sleep(pace.poll_s)
            flying = {task: owner for task, owner in flying.items() if not task.done()}


async def _next(
    db: Database, claim: Claim[Item], pace: Pace, owners: Collection[str]
) -> Item | None:
    if len(owners) >= pace.most_at_once:
        return None
    busy = [owner for owner, count in Counter(owners).items() if count >= pace.most_of_one]
    async with db.transaction() as tx:
        return await claim(tx, passing_over=busy)
