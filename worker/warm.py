"""Processes that have imported the ML stack and wait: each becomes one run, and is used once.

There is one for each device, in the very environment that a run on it gets: nothing has to be
changed in a process whose libraries have looked at it. Each waits for the folder of a run on its
standard input, as `worker.trainer.warm` says.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import structlog

from app.settings import Settings
from worker.launcher import DEVICES, train_environment
from worker.rundir import BEGUN, READY

log = structlog.get_logger()

LOOK_S = 0.5
REST_S = 10.0  # after one was used: its run is to get going before the next one's import
AGAIN_S = 30.0  # after one died
IMPORT_S, BEGIN_S = 60.0, 5.0  # the longest that it imports, and that it begins
POLL_S = 0.01
LAST_BYTES = 2000
LONGEST_NAME = 80  # of a run's folder below the folder of all: a job's id and an attempt


def warm_trainers(
    settings: Settings, inherited: Mapping[str, str], devices: Sequence[str]
) -> "WarmTrainers | None":
    """Return what waits on a worker's devices; None where its operator wants nothing to.

    For models of the hub where there are any, until the first run says otherwise.
    """
    if not settings.warm_trainers:
        return None
    offline = not settings.hub_models
    return WarmTrainers(
        warm_command(settings.runs_dir),
        [train_environment(inherited, devices=[each], offline=offline) for each in devices],
    )


def warm_command(runs: Path) -> list[str]:
    """Return the argv of a process that waits for one of the runs below a folder.

    The last word makes room: its run's folder will be shown there.
    """
    longest = str(runs / ("-" * LONGEST_NAME))
    return [
        *(sys.executable, "-m", "worker.leash", str(os.getpid())),
        *(sys.executable, "-m", "worker.trainer.warm", longest),
    ]


class WarmProcess:
    """One process that waits and then is a run, with the methods of asyncio's processes."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._printed = TemporaryFile()  # noqa: SIM115  until it has a run, and that a log
        try:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                env=environment,
                start_new_session=True,
            )
        except OSError:
            self._printed.close()
            raise
        assert self._process.stdin and self._process.stdout
        self._order, self._said = self._process.stdin, self._process.stdout
        os.set_blocking(self._said.fileno(), False)
        self._ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def send_signal(self, number: int, /) -> None:
        self._process.send_signal(number)

    async def wait(self) -> int:
        return await asyncio.to_thread(self.join)

    def join(self) -> int:
        """Return the exit code, once there is one."""
        return self._process.wait()

    def is_ready(self) -> bool:
        """Whether it is there, has imported all, and waits."""
        return self._has_imported() and self.returncode is None

    async def begin(self, folder: Path) -> bool:
        """Let it be the run of a folder, once it has imported all, or end it.

        Returns whether it began: one that was killed meanwhile does not, nor one that hangs.
        """
        begun = False
        try:
            with suppress(BrokenPipeError):
                self._order.write(os.fsencode(folder))
            self._order.close()
            begun = await self._begins()
        finally:
            if begun:
                self._close()
            else:
                last = self.last_words()
                log.warning("warm_trainer.not_begun", exit_code=self.returncode, last=last)
                self.end()
        return begun

    async def _begins(self) -> bool:
        ends_at = time.monotonic() + (BEGIN_S if self.is_ready() else IMPORT_S)
        while True:
            over = self.returncode is not None or time.monotonic() >= ends_at
            if self._has_imported() and self._said.read(len(BEGUN)) == BEGUN:
                return True  # also where the run is over already
            if over:
                return False
            await asyncio.sleep(POLL_S)

    def _has_imported(self) -> bool:
        self._ready = self._ready or self._said.read(len(READY)) == READY
        return self._ready

    def end(self) -> None:
        """End it, and whatever it started."""
        with suppress(ProcessLookupError):  # it has ended, and was waited for
            os.killpg(self.pid, signal.SIGKILL)
        self.join()
        self._close()

    def last_words(self) -> str:
        """Return the end of what it printed while it waited."""
        self._printed.seek(0, os.SEEK_END)
        self._printed.seek(max(self._printed.tell() - LAST_BYTES, 0))
        return self._printed.read().decode(errors="replace")

    def _close(self) -> None:
        for file in (self._order, self._said, self._printed):
            file.close()


@dataclass
class Place:
    """Where the next process for a device waits, or will, from a moment of the monotonic clock."""

    environment: Mapping[str, str]
    process: WarmProcess | None = None
    empty_until: float = 0.0
    told: bool = False

    def is_ready(self) -> bool:
        return self.process is not None and self.process.is_ready()


class WarmTrainers:
    """Keeps a process in each place; threads share it."""

    def __init__(
        self,
        command: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        *,
        rest_s: float = REST_S,
        again_s: float = AGAIN_S,
    ) -> None:
        self._command = command
        self._places = [Place(environment) for environment in environments]
        self._rest_s, self._again_s = rest_s, again_s
        self._used: list[WarmProcess] = []
        self._lock = threading.Lock()

    def keep(self, shutdown: threading.Event) -> None:
        """Start what is missing until told to stop, and wait for the runs that began.

        Linux ends a leashed process with the thread that started it, which is this one.
        """
        try:
            while not shutdown.is_set():
                with self._lock:
                    self._used = [each for each in self._used if each.returncode is None]
                    for place in self._places:
                        self._tend(place)
                shutdown.wait(LOOK_S)
        finally:
            with self._lock:
                for place in self._places:
                    self._empty(place)
            for process in self._used:
                process.join()

    def take(self, environment: Mapping[str, str]) -> WarmProcess | None:
        """Return a process in just this environment, ready if one is; it is the caller's then.

        Where the device's process waits in another environment, the next one will be in this.
        """
        with self._lock:
            device = environment[DEVICES]
            here = [place for place in self._places if place.environment[DEVICES] == device]
            same = [place for place in here if place.environment == environment]
            if here and not same:
                self._empty(here[0])
                here[0].environment = environment
            for place in sorted(same, key=Place.is_ready, reverse=True):
                if (process := place.process) is not None and process.returncode is None:
                    place.process, place.empty_until = None, time.monotonic() + self._rest_s
                    self._used.append(process)
                    return process
        return None

    def _tend(self, place: Place) -> None:
        if place.process is not None and place.process.returncode is not None:
            log.warning(
                "warm_trainer.died",
                exit_code=place.process.returncode,
                last=place.process.last_words(),
            )
            self._empty(place, for_s=self._again_s)
        if place.process is None and time.monotonic() >= place.empty_until:
            self._start(place)
        elif place.process is not None and not place.told and place.is_ready():
            place.told = True
            log.info("warm_trainer.waits", pid=place.process.pid)

    def _start(self, place: Place) -> None:
        """Start a process, one import at a time."""
        if any(each.process is not None and not each.is_ready() for each in self._places):
            return
        try:
            place.process, place.told = WarmProcess(self._command, place.environment), False
        except OSError as error:
            log.warning("warm_trainer.not_started", error=str(error))
            place.empty_until = time.monotonic() + self._again_s

    def _empty(self, place: Place, *, for_s: float | None = None) -> None:
        if place.process is not None:
            place.process.end()
        rest_s = self._rest_s if for_s is None else for_s
        place.process, place.empty_until = None, time.monotonic() + rest_s
