"""A slot for an environment: its process, spoken with by lines, and another after a failure."""

import asyncio
import json
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from worker import launcher
from worker.environments.base import EnvironmentUnavailable, Failure, Outcome

START_S = 120.0  # from the start of a process to its instructions
END_S = 2.0  # for a process to end by itself
LAST_BYTES = 2000


class Said(BaseModel):
    """What the process says in a line: one of these."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    ready: str | None = None
    unavailable: str | None = None
    outcome: Outcome | None = None
    failure: str | None = None


class Broken(Exception):
    """The process cannot be asked any more; the message says why."""


class Slot:
    """One environment after another, each in a process of its own."""

    def __init__(
        self,
        target: str,
        arguments: Mapping[str, object],
        *,
        environment: Mapping[str, str],
        log: Path,
    ) -> None:
        """Start nothing yet; `target` is MODULE:CLASS, and `log` has what the process prints."""
        self._target = target
        self._arguments = arguments
        self._environment = environment
        self._log = log
        self._process: Process | None = None
        self._left_s = 0.0

    async def start(self) -> str:
        """Start a process and return the environment's instructions.

        Raises:
            EnvironmentUnavailable: none can be made here.
        """
        command = [sys.executable, "-m", "worker.environments.host", str(os.getpid()), self._target]
        self._process = await launcher.launch_talking(
            command, environment=self._environment, log=self._log
        )
        try:
            async with asyncio.timeout(START_S):
                said = await self._talk(self._process, {"arguments": self._arguments})
        except TimeoutError:
            raise EnvironmentUnavailable(f"{self._target} was not made in {START_S:g} s.") from None
        except Broken as error:
            raise EnvironmentUnavailable(f"{self._target} cannot be made: {error}") from error
        if said.ready is None:
            raise EnvironmentUnavailable(said.unavailable or f"{self._target} is never ready.")
        return said.ready

    async def reset(self, episode: Mapping[str, object], timeout_s: float) -> Outcome | Failure:
        """Begin an episode that is waited for so long, over all its calls."""
        if self._process is None:
            try:
                await self.start()
            except EnvironmentUnavailable as error:
                return await self._fail(str(error))
        self._left_s = timeout_s
        return await self._ask({"reset": episode})

    async def step(self, action: str) -> Outcome | Failure:
        """Act in the episode."""
        return await self._ask({"step": action})

    async def close(self) -> None:
        """Let the process end by itself, or else end it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            with suppress(TimeoutError):  # it hangs, and is killed
                async with asyncio.timeout(END_S):
                    await self._process.wait()
        await self._end()

    async def _ask(self, message: Mapping[str, object]) -> Outcome | Failure:
        """Ask; after a failure the process is gone."""
        if self._process is None:
            raise ValueError("no episode is under way in this slot")
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._left_s):
                said = await self._talk(self._process, message)
        except TimeoutError:
            return await self._fail("the environment took longer than an episode may be waited for")
        except Broken as error:
            return await self._fail(str(error))
        if said.outcome is None:
            return await self._fail(said.failure or "the environment answered something else")
        self._left_s -= time.monotonic() - began
        return said.outcome

    async def _talk(self, process: Process, message: Mapping[str, object]) -> Said:
        """Say a line and hear one."""
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            await process.stdin.drain()
            line = await process.stdout.readline()
        except ConnectionError:  # it has ended
            line = b""
        except ValueError as error:  # longer than a stream's limit
            raise Broken("the environment said a line without an end") from error
        if not line:
            how = _how(await process.wait())
            raise Broken(f"the environment's process ended {how}{self._last()}")
        try:
            return Said.model_validate_json(line)
        except ValidationError as error:
            told = line[:LAST_BYTES]
            raise Broken(f"the environment said what is no answer: {told!r}") from error

    async def _fail(self, reason: str) -> Failure:
        await self._end()
        return Failure(reason[:LAST_BYTES])

    async def _end(self) -> None:
        """Kill the process and whatever it started."""
        if self._process is not None:
            await launcher.kill(self._process)
            self._process = None

    def _last(self) -> str:
        """Return the last line that the process printed, if it did."""
        printed = self._log.read_bytes()[-LAST_BYTES:].decode(errors="replace").strip()
        return f": {printed.splitlines()[-1]}" if printed else ""


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
