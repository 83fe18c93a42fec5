"""The trainer's side of environments: each in a process of its own, asked all at once."""

import asyncio
import os
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self, TypeVar

from app.environments.installed import installed
from app.settings import inherited_environment
from worker import launcher
from worker.environments.base import EnvironmentUnavailable, Failure, Outcome
from worker.environments.slot import Slot

Said = TypeVar("Said")


class Hosts:
    """`slots` environments of one kind, each in a process of its own.

    An environment that hangs, crashes or says nonsense fails its episode and not the run: its
    process is killed, and its slot has a new one for the next. `timeout_s` is how long an episode
    is waited for, over all its calls. The processes live no longer than the thread that made this.
    """

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, object],
        *,
        slots: int,
        timeout_s: float,
        inside: Path | None = None,
    ) -> None:
        """Start the processes, a few at once.

        Args:
            inside: the folder that they write below, so that who ends a run finds what it left;
                the system's for temporary files by default.

        Raises:
            EnvironmentUnavailable: none of that name is installed, or it cannot be made here.
        """
        known = installed()
        if name not in known:
            there = ", ".join(known) or "none"
            raise EnvironmentUnavailable(f"No environment {name!r} is installed here, but {there}.")
        self._timeout_s = timeout_s
        self._loop = asyncio.Runner()
        self._scratch = TemporaryDirectory(
            prefix="basin-environments-", dir=inside, ignore_cleanup_errors=True
        )
        folder = Path(self._scratch.name)
        environment = _environment(inherited_environment(), folder)
        self._slots = [
            Slot(
                known[name].value,
                arguments,
                environment=environment,
                log=folder / f"{number}.log",
            )
            for number in range(slots)
        ]
        try:
            at_once = asyncio.Semaphore(2 * (os.cpu_count() or 1))  # so that none starts for ever
            self.instructions = self._together(_start(slot, at_once) for slot in self._slots)[0]
        except BaseException:
            self.close()
            raise

    def reset(self, episodes: Sequence[Mapping[str, object]]) -> list[Outcome | Failure]:
        """Begin an episode in each of the first slots; what was under way there is left."""
        if len(episodes) > len(self._slots):
            raise ValueError(f"{len(episodes)} episodes do not fit into {len(self._slots)} slots")
        return self._together(
            slot.reset(episode, timeout_s=self._timeout_s)
            for slot, episode in zip(self._slots, episodes, strict=False)
        )

    def step(self, actions: Mapping[int, str]) -> dict[int, Outcome | Failure]:
        """Act in the slots that are named, whose episodes go on."""
        said = self._together(self._slots[slot].step(action) for slot, action in actions.items())
        return dict(zip(actions, said, strict=True))

    def close(self) -> None:
        """End the processes, and delete what they wrote."""
        self._together(slot.close() for slot in self._slots)
        self._loop.close()
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _together(self, asked: Iterable[Coroutine[Any, Any, Said]]) -> list[Said]:
        return self._loop.run(_all(list(asked)))


async def _start(slot: Slot, at_once: asyncio.Semaphore) -> str:
    async with at_once:
        return await slot.start()


async def _all(asked: list[Coroutine[Any, Any, Said]]) -> list[Said]:
    """Ask all, then wait for all; only then is the first exception raised."""
    said = await asyncio.gather(*asked, return_exceptions=True)
    for each in said:
        if isinstance(each, BaseException):
            raise each
    return [each for each in said if not isinstance(each, BaseException)]


def _environment(inherited: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Return what an environment's process is told: no secret, no GPU, and where to write."""
    return launcher.train_environment(inherited, devices=["cpu"], offline=True) | {
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",  # what libraries do in the order of a set is the same each time
        "TMPDIR": str(scratch),
    }
