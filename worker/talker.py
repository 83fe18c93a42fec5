"""The process that holds the models being tried: started when one is, and ended when none was."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

import structlog

from worker import launcher
from worker.dialogue import Answered, Refused, Said, Show, Stop, said

log = structlog.get_logger()

GRACE_S = 10.0  # past its time limit a process that still says nothing hangs
LAST_BYTES = 2000


class Gone(Exception):
    """The process ended, or hangs, in the middle of an answer; the message is for the caller."""


class Talker:
    """One process at a time, for one question at a time."""

    def __init__(
        self, environment: Mapping[str, str], arguments: list[str], log_file: Path
    ) -> None:
        self._environment = environment
        self._arguments = arguments
        self._log = log_file
        self._process: Process | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def ask(self, show: Show) -> AsyncGenerator[Said]:
        """Yield what the process says to a question, the last word being Answered or Refused.

        Raises:
            Gone: it ended before, or hangs. The next question starts another.
        """
        process = await self._ready()
        await _send(process, show)
        ends_at = asyncio.get_running_loop().time() + show.limit_s + GRACE_S
        while True:
            word = await self._hear(process, ends_at)
            if word.id == show.id:  # else one that nobody waits for any more
                yield word
                if isinstance(word, Answered | Refused):
                    return

    async def stop(self, preview_id: str) -> None:
        """Tell the process that nobody waits for an answer any more."""
        if self._process is not None and self.running:
            await _send(self._process, Stop(id=preview_id))

    async def end(self) -> None:
        """End the process and whatever it started, and its memory with it."""
        if self._process is not None:
            await launcher.kill(self._process)
            self._process = None

    async def _ready(self) -> Process:
        if self._process is not None and self.running:
            return self._process
        await self.end()
        command = [sys.executable, "-m", "worker.trainer.preview", *self._arguments]
        self._process = await launcher.launch_talking(
            [sys.executable, "-m", "worker.leash", str(os.getpid()), *command],
            environment=self._environment,
            log=self._log,
        )
        log.info("previewer.model_process_started", pid=self._process.pid)
        return self._process

    async def _hear(self, process: Process, ends_at: float) -> Said:
        assert process.stdout is not None
        try:
            async with asyncio.timeout_at(ends_at):
                line = await process.stdout.readline()
        except TimeoutError:
            log.warning("previewer.model_process_hung", pid=process.pid)
            await self.end()
            raise Gone(
                "The model was not done when the time of the preview was over, and its process was"
                " stopped; ask again, for fewer tokens."
            ) from None
        if line:
            return said.validate_json(line)
        code = await process.wait()
        last = self._last_words()
        log.warning("previewer.model_process_died", exit_code=code, last=last)
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        await self.end()
        raise Gone(
            f"The process that holds the model ended {how} in the middle of the answer; if that"
            " happens again, the worker's log says more."
        )

    def _last_words(self) -> str:
        return self._log.read_bytes()[-LAST_BYTES:].decode(errors="replace")


async def _send(process: Process, request: Show | Stop) -> None:
    """Write a line; a process that is gone is noticed by what it does not say."""
    assert process.stdin is not None
    try:
        process.stdin.write(request.model_dump_json().encode() + b"\n")
        await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        log.info("previewer.model_process_deaf", pid=process.pid)
