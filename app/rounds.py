"""One question for all who ask at the same time: what they are told is the same, and costs once."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextvars import Context
from typing import Any, Generic, TypeVar

from app.errors import Unavailable

Asked = TypeVar("Asked")
Told = TypeVar("Told")
PATIENCE_S = 10.0


class Rounds(Generic[Asked, Told]):
    """Collects what is asked while a round is under way, and asks it all in the next.

    A round begins after everything that is asked in it, so each is told what is true then, as by a
    question of their own. Who asks alone does not wait. What a round raises, all in it are raised:
    what one caller can make wrong must be refused before it is asked here. One that hangs is left
    to end by itself after `patience_s`, and the next begins.
    """

    def __init__(
        self,
        ask_all: Callable[[Sequence[Asked]], Coroutine[Any, Any, Told]],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._ask_all = ask_all
        self._patience_s = patience_s
        self._asked: list[Asked] = []
        self._one_at_a_time = asyncio.Lock()
        self._next: asyncio.Task[Told] | None = None
        self._left: set[asyncio.Task[Told]] = set()  # the event loop holds tasks weakly

    async def ask(self, asked: Iterable[Asked]) -> Told:
        """Return what the round came to that these were asked in; others were asked in it too.

        Raises:
            Unavailable: it hung.
        """
        self._asked.extend(asked)
        if self._next is None:
            # A context of its own: what it logs is not of whoever asked first.
            self._next = asyncio.create_task(self._round(), context=Context())
            self._next.add_done_callback(_forget_error)
        return await asyncio.shield(self._next)  # who leaves takes it from nobody else

    async def _round(self) -> Told:
        async with self._one_at_a_time:
            asked, self._asked, self._next = self._asked, [], None
            asking = asyncio.create_task(self._ask_all(asked))
            try:
                done, _ = await asyncio.wait({asking}, timeout=self._patience_s)
            except asyncio.CancelledError:
                self._leave(asking)
                raise
            if not done:
                self._leave(asking)
                raise Unavailable("The service is held up; try again in a moment.")
            return asking.result()

    def _leave(self, asking: asyncio.Task[Told]) -> None:
        """Cancel a question, and wait for nothing: what hangs may take long to be cancelled."""
        self._left.add(asking)
        asking.add_done_callback(self._left.discard)
        asking.add_done_callback(_forget_error)
        asking.cancel()


def _forget_error(task: asyncio.Task[Any]) -> None:
    """Take the error of a task whose askers have all left, or asyncio logs that nobody did."""
    if not task.cancelled():
        task.exception()
