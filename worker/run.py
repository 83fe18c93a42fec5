"""One attempt at a job on this machine, and its hold on the job: renewed, watched, let go."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError

from app.db import Database
from app.jobs import lease
from app.jobs.lease import Claim, LeaseLostError
from app.jobs.spec import CheckpointSaved, StepDone, TrainEvent
from worker import launcher
from worker.launcher import Running
from worker.rundir import LineTail, RunDir
from worker.telemetry import FAILURES, RENEWALS
from worker.traces import StepSpans

log = structlog.get_logger()

RENEW_S = 10.0
ASK_S = lease.LEASE_S / 2  # of silence: the run is asked to save what it has
GIVE_UP_S = lease.LEASE_S * 2 / 3  # of silence: nobody else may have taken the job yet
AWAY_S = 1.0  # between two tries at a database that is away
DATABASE_AWAY = (OperationalError, InterfaceError)
T = TypeVar("T")


@dataclass
class Run:
    """What the tasks around a run share."""

    db: Database
    claim: Claim
    folder: RunDir
    shutdown: threading.Event
    events: LineTail = field(init=False)
    printed: LineTail = field(init=False)
    process: Running | None = None
    last: TrainEvent | None = None
    last_step: StepDone | None = None  # told to the database
    stop: str | None = None
    renewed_at: float = field(default_factory=time.monotonic)
    exports: list[CheckpointSaved] = field(default_factory=list)  # told, and not stored yet
    saved_step: int = 0  # of the newest checkpoint that is told, with all before it
    stored_step: int = 0  # of the newest checkpoint that another worker can carry on from
    too_large: bool = False  # its checkpoints are, for the database
    uploading: asyncio.Task[None] | None = None
    spans: StepSpans = field(default_factory=StepSpans)
    ending: bool = False  # what is lost from here on was let go

    def __post_init__(self) -> None:
        self.events = LineTail(self.folder.events)
        self.printed = LineTail(self.folder.log)

    def renewed(self, stop: str | None) -> None:
        """Note that the job is ours for another while, and what its owner wants of it."""
        self.renewed_at = time.monotonic()
        RENEWALS.inc()
        self.stop = stop if stop == "cancel" else self.stop or stop


async def keep(run: Run) -> None:
    """Renew the hold, whatever else the supervisor waits for.

    Raises:
        LeaseLostError: the job is another's now, or over.
    """
    while True:
        await asyncio.sleep(RENEW_S)
        try:
            async with run.db.transaction() as tx:
                stop = await lease.renew(tx, run.claim)
        except DATABASE_AWAY as error:
            FAILURES.inc()
            log.warning("lease.not_renewed", job_id=run.claim.job_id, error=str(error.orig))
        except LeaseLostError:
            if run.ending:
                return
            raise
        else:
            run.renewed(stop)


async def guard(run: Run) -> None:
    """End the run before its hold ends: it could not be renewed, and another may take the job.

    By the clock of this machine alone: a database that hangs hangs everything else.

    Raises:
        LeaseLostError: the run was killed.
    """
    asked = False
    while True:
        await asyncio.sleep(1.0)
        silence_s = time.monotonic() - run.renewed_at
        if run.process and silence_s > ASK_S and not asked:
            launcher.ask(run.process)
            asked = True
        if silence_s > GIVE_UP_S:
            if run.process:
                await launcher.kill(run.process)
            raise LeaseLostError(f"{run.claim.job_id}: not renewed for {silence_s:.0f} s")


async def patiently(run: Run, operation: Callable[[], Awaitable[T]]) -> T:
    """Do something in the database; while it is away, again and again. `guard` ends that."""
    while True:
        try:
            return await operation()
        except DATABASE_AWAY as error:
            log.warning("database.away", job_id=run.claim.job_id, error=str(error.orig))
            await asyncio.sleep(AWAY_S)
