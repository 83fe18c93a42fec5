"""One question for all who ask at the same time: what they are told is the same, and costs once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

from app.errors import Unavailable

Asked = TypeVar("Asked")
Told = TypeVar("Told")
PATIENCE_S = 10.0


class Rounds(Generic[Asked, Told]):
    """Collects what is asked while a round is under way, and asks it all in the next.

    A round begins after everything that is asked in it, so each is told what is true then, as by a
    question of their own. Who asks alone does not wait. What a round raises, all in it are raised:
    what one caller can make wrong must be refused before it is asked here. One that hangs is given
    up after `patience_s`, so that it does not hold up those after it.
    """

    def __init__(
        self,
        ask_all: Callable[[Sequence[Asked]], Awaitable[Told]],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._ask_all = ask_all
        self._patience_s = patience_s
        self._asked: list[Asked] = []
        self._one_at_a_time = asyncio.Lock()
        self._next: asyncio.Task[Told] | None = None

    async def ask(self, asked: Iterable[Asked]) -> Told:
        """Return what the round came to that these were asked in; others were asked in it too.

        Raises:
            Unavailable: it was given up.
        """
        self._asked.extend(asked)
        if self._next is None:
            self._next = asyncio.create_task(self._round())
        return await asyncio.shield(self._next)  # who leaves takes it from nobody else

    async def _round(self) -> Told:
        async with self._one_at_a_time:
            asked, self._asked, self._next = self._asked, [], None
            try:
                async with asyncio.timeout(self._patience_s):
                    return await self._ask_all(asked)
            except TimeoutError:
                raise Unavailable("The database does not answer; try again in a moment.") from None
