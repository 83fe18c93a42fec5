"""What must be true of every job, kept beside the database and told the same things."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from app.jobs.lease import MAX_LOST_ATTEMPTS, Claim
from app.jobs.states import TERMINAL, JobStatus

Lease = Literal["fresh", "silent", "expired"]


@dataclass
class Known:
    """A job as it must be."""

    job_id: str
    organization_id: str
    born: int
    priority: int
    gpus: int
    status: JobStatus = JobStatus.QUEUED
    outcomes: list[str | None] = field(default_factory=list)  # of its attempts
    lease: Lease = "fresh"
    stop: str | None = None  # what its owner asked of the run
    lost: int = 0  # attempts in a row
    rests: bool = False  # until it is tried again
    patient: bool = False  # has waited for so long that nobody may pass
    error: str | None = None
    step: int = 0
    told: dict[int, tuple[int, float]] = field(default_factory=dict)  # step: attempt, value
    states: list[int] = field(default_factory=list)  # steps it can be carried on from
    exports: set[int] = field(default_factory=set)

    @property
    def over(self) -> bool:
        return self.status in TERMINAL

    def is_held_by(self, claim: Claim) -> bool:
        return self.status == JobStatus.RUNNING and len(self.outcomes) == claim.attempt

    def claimed(self) -> None:
        self.status, self.lease, self.rests = JobStatus.RUNNING, "fresh", False
        self.outcomes.append(None)

    def tell(self, attempt: int, steps: Iterable[int], value: float) -> None:
        for step in steps:
            self.told[step] = (attempt, value)
            self.step = step

    def keep(self, step: int) -> None:
        """Keep a state to carry on from, and the one before; a job that comes so far is well."""
        self.states = [*sorted(each for each in self.states if each < step)[-1:], step]
        self.lost = 0

    def ended(self, status: JobStatus, error: str | None = None, outcome: str = "") -> None:
        self.status, self.error, self.states, self.rests = status, error, [], False
        self._close(outcome or status)

    def let_go(self, outcome: str) -> None:
        """The run is over and the job is not: what its owner asked meanwhile is done."""
        if self.stop == "cancel":
            self.ended(JobStatus.CANCELLED)
            return
        self.status = JobStatus.PAUSED if self.stop == "pause" else JobStatus.QUEUED
        self.stop, self.patient = None, False
        self._close(outcome)

    def killed(self, code: str) -> None:
        if self.stop != "cancel":
            self.lost += 1
        if self.stop != "cancel" and self.lost >= MAX_LOST_ATTEMPTS:
            self.ended(JobStatus.FAILED, code)
            return
        self.let_go("killed")
        self.rests = not self.over

    def swept(self) -> None:
        """A sweep looks: a worker that fell silent has lost it."""
        silent = self.lease == "expired" or (self.stop == "cancel" and self.lease == "silent")
        if self.status != JobStatus.RUNNING or not silent:
            return
        self.lost += 1
        if self.stop is None and self.lost >= MAX_LOST_ATTEMPTS:
            self.ended(JobStatus.FAILED, "poison", outcome="lost")
        elif self.stop == "cancel":
            self.ended(JobStatus.CANCELLED, outcome="lost")
        else:
            self.let_go("lost")

    def _close(self, outcome: str) -> None:
        if self.outcomes and self.outcomes[-1] is None:
            self.outcomes[-1] = outcome


def line(jobs: Iterable[Known]) -> list[Known]:
    """Return who waits, in the order of priority, turn and age."""
    jobs = list(jobs)
    held: Counter[str] = Counter()
    for job in jobs:
        if job.status == JobStatus.RUNNING:
            held[job.organization_id] += job.gpus
    turns: dict[str, int] = {}
    for job in sorted(jobs, key=lambda job: (-job.priority, job.born)):
        if job.status == JobStatus.QUEUED:
            held[job.organization_id] += job.gpus
            turns[job.job_id] = held[job.organization_id]
    waiting = [job for job in jobs if job.job_id in turns]
    return sorted(waiting, key=lambda job: (-job.priority, turns[job.job_id], job.born))


def next_for(
    jobs: Iterable[Known], *, free: int, total: int, but: Known | None = None
) -> Known | None:
    """Return whom a worker takes: the first that fits, unless a patient one waits for devices.

    `but` is one that another worker is taking.
    """
    for job in line(jobs):
        if job.gpus <= free and not job.rests and job is not but:
            return job
        if free < job.gpus <= total and job.patient:
            return None
    return None
