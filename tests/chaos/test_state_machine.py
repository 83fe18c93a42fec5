"""Whatever workers, owners, sweeps and late zombies do, in any order, a job's states hold."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app import blobs, fsck
from app.blobs import StoredBytes
from app.db import Database
from app.errors import InvalidJobState
from app.files import service as files
from app.jobs import lease, service
from app.jobs.lease import Claim, Failure, LeaseLostError
from app.jobs.schemas import CreateJob, ResourcesIn
from app.jobs.spec import Finished, StepDone
from app.jobs.states import SOURCES, JobStatus
from app.settings import ApiSettings
from app.sweep import sweep_storage
from tests.app.racing import Operation, SilentBell, commit, overtake
from tests.app.records import make_file, make_organization, stream
from tests.chaos.ledger import Known, Lease, next_for

QUICK = settings(max_examples=8, stateful_step_count=30, derandomize=True)
THOROUGH = settings(max_examples=24, stateful_step_count=50)
UNTIMED = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much],
}
RUNNING, QUEUED, PAUSED = JobStatus.RUNNING, JobStatus.QUEUED, JobStatus.PAUSED
PRIORITIES = st.integers(-1, 1)
LAST_STEP = 8
STEPS = st.integers(1, LAST_STEP)
PICKS = st.integers(0, 39)
WISHES = st.sampled_from(["cancel", "pause", "resume"])
ENDS = st.sampled_from(["succeed", "fail", "lose", "give back", "pause", "cancel"])
SINCE = {"fresh": "60 seconds", "silent": "40 seconds", "expired": "-1 second"}
TABLES = (
    "checkpoints", "resume_states", "metrics", "job_events", "attempts", "jobs", "files", "blobs",
    "organizations",
)  # fmt: skip
ROWS = {
    "jobs": "SELECT to_jsonb(j) FROM jobs j",
    "attempts": "SELECT to_jsonb(a) FROM attempts a ORDER BY number",
    "metrics": "SELECT to_jsonb(m) FROM metrics m ORDER BY step",
    "resume_states": "SELECT to_jsonb(r) FROM resume_states r ORDER BY step",
    "checkpoints": "SELECT to_jsonb(c) FROM checkpoints c",
    "blobs": "SELECT to_jsonb(b) FROM blobs b WHERE writer IS NOT NULL",
}


@dataclass
class Deed:
    """What somebody does in one transaction, and the error that must meet it."""

    does: Operation
    refused: type[Exception] | None = None


@dataclass
class Basin:
    """The services on a database of their own, without HTTP, and what drives them."""

    runner: asyncio.Runner
    db: Database
    settings: ApiSettings

    def run(self, operation: Operation) -> Any:
        return self.runner.run(commit(self.db, operation))

    def sql(self, statement: str, **values: Any) -> None:
        self.run(lambda tx: tx.execute(text(statement), values))

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        async def read(tx: AsyncSession) -> dict[str, list[dict[str, Any]]]:
            return {name: list(await tx.scalars(text(sql))) for name, sql in ROWS.items()}

        found: dict[str, list[dict[str, Any]]] = self.run(read)
        return found

    def both(self, *operations: Operation) -> list[Any]:
        """Do things at the same time."""

        async def gather() -> list[Any]:
            return await asyncio.gather(*(commit(self.db, each) for each in operations))

        return self.runner.run(gather())

    def overtake(self, first: Operation, second: Operation) -> Any:
        return self.runner.run(overtake(self.db, first, second))


class Jobs(RuleBasedStateMachine):
    """Two tenants, some workers, and claims that are never forgotten."""

    basin: ClassVar[Basin]
    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, Known] = {}
        self.claims: list[Claim] = []  # every one there ever was
        self.files: dict[str, str] = {}
        self.before: dict[str, dict[str, Any]] = {}  # rows of jobs, as they were last
        self.strays: set[str] = set()  # blobs that a zombie began
        self.stored: dict[str, StoredBytes] = {}

    @initialize(target=jobs)
    def two_tenants(self) -> Any:
        async def make() -> dict[str, str]:
            made = {}
            for _ in range(2):
                organization = await make_organization(self.basin.db)
                file = await make_file(self.basin.db, organization)
                made[organization] = file.id
            return made

        self.files = self.basin.runner.run(make())
        self.basin.sql("UPDATE files SET rows = 24, row_format = 'chat'")
        made = [self._submit(tenant, 0, gpus) for tenant, gpus in ((0, 1), (0, 1), (1, 1), (1, 2))]
        self._claim(free=1, total=2)
        return multiple(*made)

    # owners

    @rule(target=jobs, tenant=st.integers(0, 1), priority=PRIORITIES, gpus=st.integers(1, 2))
    def submit(self, tenant: int, priority: int, gpus: int) -> str:
        return self._submit(tenant, priority, gpus)

    @rule(job_id=jobs, wish=WISHES)
    def owner_wishes(self, job_id: str, wish: str) -> None:
        self._do(self._wish(job_id, wish))

    # workers

    @rule(free=st.integers(1, 2), more=st.integers(0, 2), times=st.integers(1, 3))
    def claim(self, free: int, more: int, times: int) -> None:
        for _ in range(times):
            self._claim(free=free, total=free + more)

    @rule(first=st.integers(1, 2), second=st.integers(1, 2))
    def claim_at_once(self, first: int, second: int) -> None:
        """The second looks while the first has taken a job and nobody can see it yet."""
        jobs, got = self.known.values(), []

        async def take(tx: AsyncSession) -> None:
            got.append(await lease.claim(tx, "w", free=first))

        taken = next_for(jobs, free=first, total=first)
        other = next_for(jobs, free=second, total=second, but=taken)
        late = self.basin.overtake(take, lambda tx: lease.claim(tx, "x", free=second))
        self._claimed(got[0], taken)
        self._claimed(late, other)

    @rule(pick=PICKS, steps=st.lists(STEPS, max_size=3), value=st.floats(0, 10, width=32))
    def relay(self, pick: int, steps: list[int], value: float) -> None:
        self._do(self._relay(self._pick(pick), steps, value))

    @rule(pick=PICKS, steps=st.lists(STEPS, min_size=1, max_size=3))
    def keep_resume_states(self, pick: int, steps: list[int]) -> None:
        for step in steps:
            self._do(self._keep(self._pick(pick), step))

    @rule(pick=PICKS, step=STEPS)
    def export(self, pick: int, step: int) -> None:
        held = self._pick(pick)
        stored = self._write(held)
        deed = self._by(
            held,
            lambda tx: lease.add_checkpoint(
                tx, held, step=step, metrics={}, blob_id=stored.blob_id
            ),
            stored,
        )
        if deed.refused is None:
            self.known[held.job_id].exports.add(step)
        self._do(deed)

    @rule(pick=PICKS, how=ENDS, half_written=st.booleans())
    def end(self, pick: int, how: str, half_written: bool) -> None:
        held = self._pick(pick)
        if half_written:
            self._write(held)
        self._do(self._end(held, how))

    @rule(pick=PICKS, how=ENDS)
    def end_twice(self, pick: int, how: str) -> None:
        """The answer to a commit was lost: it is done again."""
        deed = self._end(self._pick(pick), how)
        self._do(deed)
        self._do(replace(deed, refused=LeaseLostError))

    @rule(pick=PICKS)
    def kill_again_and_again(self, pick: int) -> None:
        """Whoever gets the job has its run killed."""
        job = self.known[self._pick(pick).job_id]
        for _ in range(lease.MAX_LOST_ATTEMPTS):
            for held in [each for each in self._live() if each.job_id == job.job_id]:
                self._do(self._end(held, "lose"))
                self._retry(job)
                self._claim(free=2, total=2)

    # sweeps and time

    @rule(pick=PICKS, how=st.sampled_from(["silent", "expired"]), sweeps=st.integers(0, 2))
    def worker_falls_silent(self, pick: int, how: str, sweeps: int) -> None:
        self._expire(self.known[self._pick(pick).job_id], how)
        self._sweep_at_once(sweeps)

    @rule(job_id=jobs)
    def time_passes(self, job_id: str) -> None:
        """The moment of another try comes; what waits without one has waited for very long."""
        job = self.known[job_id]
        if job.rests:
            self._retry(job)
        elif job.status == QUEUED:
            job.patient = True
            past = "queued_at = now() - interval '1 hour'"
            self.basin.sql(f"UPDATE jobs SET {past} WHERE id = :id", id=job_id)

    @rule(sweeps=st.integers(1, 3), tidies=st.booleans())
    def sweep(self, sweeps: int, tidies: bool) -> None:
        self._sweep_at_once(sweeps)
        if tidies:
            self.basin.runner.run(
                sweep_storage(self.basin.db, file_retention_days=None, resume_retention_days=30)
            )

    # two at the same time: as if the second came after

    @rule(pick=PICKS, how=ENDS, wish=WISHES)
    def owner_wishes_while_a_run_ends(self, pick: int, how: str, wish: str) -> None:
        held = self._pick(pick)
        first = self._end(held, how)
        if first.refused is None:
            self._meet(first, self._wish(held.job_id, wish))

    @rule(pick=PICKS, how=ENDS, wish=WISHES)
    def run_ends_while_its_owner_wishes(self, pick: int, how: str, wish: str) -> None:
        held = self._pick(pick)
        stored = self._write(held)
        first = self._wish(held.job_id, wish)
        if first.refused is None:
            self._meet(first, self._end(held, how, stored))

    @rule(pick=PICKS, wish=WISHES, steps=st.lists(STEPS, max_size=3))
    def run_tells_while_its_owner_wishes(self, pick: int, wish: str, steps: list[int]) -> None:
        held = self._pick(pick)
        first = self._wish(held.job_id, wish)
        if first.refused is None:
            self._meet(first, self._relay(held, steps, 0.5))

    @rule(pick=PICKS, how=ENDS, wish=WISHES, owner=st.booleans())
    def something_happens_during_a_sweep(self, pick: int, how: str, wish: str, owner: bool) -> None:
        held = self._pick(pick)
        self._expire(self.known[held.job_id], "expired")
        stored = self._write(held)
        first = self._sweep()
        self._meet(first, self._wish(held.job_id, wish) if owner else self._end(held, how, stored))

    # what must hold

    @invariant()
    def the_database_says_what_is_known(self) -> None:
        rows = self.basin.rows()
        jobs = {row["id"]: row for row in rows["jobs"]}
        assert jobs.keys() == self.known.keys()
        for job_id, job in self.known.items():
            mine = {
                name: [row for row in found if row.get("job_id") == job_id]
                for name, found in rows.items()
            }
            check_row(job, jobs[job_id])
            check_arrow(self.before.get(job_id), jobs[job_id])
            check_attempts(job, jobs[job_id], mine["attempts"])
            check_left(job, mine)
        self.before = jobs
        check_blobs(self.known, rows["blobs"], strays=self.strays)

    def teardown(self) -> None:
        if self.files:
            assert self.basin.run(fsck.check) == []
        for table in TABLES:
            self.basin.sql(f"DELETE FROM {table}")

    # deeds, and what is known after them

    def _submit(self, tenant: int, priority: int, gpus: int) -> str:
        organization, file = list(self.files.items())[tenant]
        body = CreateJob(
            model="hub/tiny",
            training_file=file,
            priority=priority,
            resources=ResourcesIn(gpus=gpus),
        )
        job = self.basin.run(
            lambda tx: service.create(
                tx, organization, body, settings=self.basin.settings, bell=SilentBell()
            )
        )
        self.known[job.id] = Known(job.id, organization, len(self.known), priority, gpus)
        return str(job.id)

    def _do(self, deed: Deed) -> None:
        if deed.refused is None:
            self.basin.run(deed.does)
        else:
            with pytest.raises(deed.refused):
                self.basin.run(deed.does)
        self.the_database_says_what_is_known()

    def _meet(self, first: Deed, second: Deed) -> None:
        ended = self.basin.overtake(first.does, second.does)
        if second.refused is None and isinstance(ended, BaseException):
            raise ended
        assert second.refused is None or isinstance(ended, second.refused)

    def _wish(self, job_id: str, wish: str) -> Deed:
        job = self.known[job_id]
        owner = job.organization_id

        async def does(tx: AsyncSession) -> None:
            if wish == "resume":
                await service.resume(tx, owner, job_id, bell=SilentBell())
            else:
                await {"cancel": service.cancel, "pause": service.pause}[wish](tx, owner, job_id)

        return Deed(does, InvalidJobState if _wished(job, wish) else None)

    def _relay(self, held: Claim, steps: list[int], value: float) -> Deed:
        said = [
            StepDone(at=time.time(), step=step, epoch=0, metrics={"train_loss": value})
            for step in steps
        ]
        deed = self._by(held, lambda tx: lease.record(tx, held, said))
        if deed.refused is None:
            self.known[held.job_id].tell(held.attempt, steps, value)
        return deed

    def _keep(self, held: Claim, step: int) -> Deed:
        stored = self._write(held)
        deed = self._by(
            held,
            lambda tx: lease.add_resume_state(tx, held, step=step, blob_id=stored.blob_id),
            stored,
        )
        if deed.refused is None:
            self.known[held.job_id].keep(step)
        return deed

    def _end(self, held: Claim, how: str, stored: StoredBytes | None = None) -> Deed:
        failure = Failure("killed", "The run was killed.")
        if how == "succeed":
            deed = self._success(held, stored or self._write(held))
        else:
            ends = {
                "fail": lambda tx: lease.fail(tx, held, Failure("bad", "It is bad.")),
                "lose": lambda tx: self._lose(tx, held, failure),
                "give back": lambda tx: lease.give_back(tx, held, "bye"),
                "pause": lambda tx: lease.pause(tx, held),
                "cancel": lambda tx: lease.cancel(tx, held),
            }
            deed = self._by(held, ends[how], renews=False)
        if deed.refused is None:
            _ended(self.known[held.job_id], how, failure)
        return deed

    def _success(self, held: Claim, adapter: StoredBytes) -> Deed:
        results = self._write(held)

        async def succeed(tx: AsyncSession) -> None:
            file = await files.add(
                tx,
                held.organization_id,
                results,
                filename="step_metrics.csv",
                purpose=files.RESULTS_PURPOSE,
                rows=None,
                row_format=None,
            )
            finished = Finished(at=time.time(), step=LAST_STEP, trained_tokens=9, metrics={})
            await lease.succeed(
                tx, held, finished, adapter_blob_id=adapter.blob_id, result_file_id=file.id
            )

        return self._by(held, succeed, adapter)

    async def _lose(self, tx: AsyncSession, held: Claim, failure: Failure) -> None:
        """Lose a run; when it is tried again is told by a rule, not by a clock."""
        await lease.lose(tx, held, failure)
        later = "UPDATE jobs SET retry_at = retry_at + interval '1 day' WHERE id = :id"
        await tx.execute(text(later), {"id": held.job_id})

    def _by(
        self,
        held: Claim,
        does: Operation,
        stored: StoredBytes | None = None,
        *,
        renews: bool = True,
    ) -> Deed:
        """A worker's deed, as it does it: behind the fence, with the bytes it wrote before."""

        async def fenced(tx: AsyncSession) -> None:
            if renews:
                await lease.renew(tx, held)
            if stored is not None:
                await blobs.seal(tx, stored)
            await does(tx)

        job = self.known[held.job_id]
        if not job.is_held_by(held):
            return Deed(fenced, LeaseLostError)
        if renews:
            job.lease = "fresh"
        return Deed(fenced)

    def _sweep(self) -> Deed:
        for job in self.known.values():
            job.swept()
        return Deed(lease.requeue_expired)

    def _sweep_at_once(self, sweeps: int) -> None:
        if not sweeps:
            return
        woken = self.basin.both(*[self._sweep().does] * sweeps)
        told = [job_id for each in woken for job_id in each]
        assert len(told) == len(set(told))
        assert all(self.known[job_id].status == QUEUED for job_id in told)

    def _expire(self, job: Known, how: Lease) -> None:
        if job.status == RUNNING:
            job.lease = how
            since = f"lease_until = now() + interval '{SINCE[how]}'"
            self.basin.sql(f"UPDATE jobs SET {since} WHERE id = :id", id=job.job_id)

    def _retry(self, job: Known) -> None:
        if job.rests:
            job.rests = False
            self.basin.sql("UPDATE jobs SET retry_at = now() WHERE id = :id", id=job.job_id)

    def _claim(self, *, free: int, total: int) -> None:
        expected = next_for(self.known.values(), free=free, total=total)
        found = self.basin.run(lambda tx: lease.claim(tx, "w", free=free, total=total))
        self._claimed(found, expected)
        self.the_database_says_what_is_known()

    def _claimed(self, claim: Claim | None, job: Known | None) -> None:
        """Compare what a worker got with what it had to get."""
        assert (claim and claim.job_id) == (job and job.job_id)
        if claim and job:
            job.claimed()
            assert (claim.attempt, claim.step) == (len(job.outcomes), job.step)
            self.claims.append(claim)

    def _pick(self, pick: int) -> Claim:
        """Return a claim that holds its job, every second time; or any there ever was.

        Where nobody holds one, a worker looks first: a rule that is left out starves no other.
        """
        if not self._live():
            self._claim(free=2, total=2)
        some = (pick % 2 and self._live()) or self.claims
        return some[pick // 2 % len(some)]

    def _live(self) -> list[Claim]:
        return [each for each in self.claims if self.known[each.job_id].is_held_by(each)]

    def _write(self, held: Claim) -> StoredBytes:
        stored: StoredBytes = self.basin.runner.run(
            blobs.write(self.basin.db, held.organization_id, stream(b"bytes"), writer=held.writer)
        )
        if not self.known[held.job_id].is_held_by(held):
            self.strays.add(stored.blob_id)
        return stored


def _wished(job: Known, wish: str) -> bool:
    """Do to what is known as the owner wishes; return whether that is refused."""
    if job.over:
        return not (wish == "cancel" and job.status == JobStatus.CANCELLED)
    if job.status == RUNNING:
        return _asked(job, wish)
    if wish == "cancel":
        job.ended(JobStatus.CANCELLED)
    elif wish == "pause":
        job.status = PAUSED
    elif job.status == PAUSED:
        job.status, job.patient = QUEUED, False
    return False


def _asked(job: Known, wish: str) -> bool:
    """What a run is asked: a cancel is for good."""
    if wish == "cancel":
        job.stop = "cancel"
    elif job.stop == "cancel":
        return wish == "pause"
    else:
        job.stop = "pause" if wish == "pause" else None
    return False


def _ended(job: Known, how: str, failure: Failure) -> None:
    match how:
        case "succeed":
            job.ended(JobStatus.SUCCEEDED)
            job.step = LAST_STEP
        case "fail":
            job.ended(JobStatus.FAILED, "bad")
        case "cancel":
            job.ended(JobStatus.CANCELLED)
        case "lose":
            job.killed(failure.code)
        case "pause":
            job.let_go("paused")
        case "give back":
            job.let_go("interrupted")


def check_row(job: Known, row: dict[str, Any]) -> None:
    running = job.status == RUNNING
    assert (row["status"], row["attempt"]) == (job.status, len(job.outcomes))
    assert (row["lost_attempts"], row["error_code"], row["step"]) == (job.lost, job.error, job.step)
    assert job.over or row["stop_requested"] == job.stop
    assert running or job.over or row["stop_requested"] is None
    assert (row["lease_until"] is not None) == running
    assert (row["finished_at"] is not None) == job.over
    assert (row["adapter_blob_id"] is not None) == (job.status == JobStatus.SUCCEEDED)


def check_arrow(before: dict[str, Any] | None, row: dict[str, Any]) -> None:
    if before is None or before == row:
        return
    was, now = JobStatus(before["status"]), JobStatus(row["status"])
    assert was not in lease.TERMINAL, "a job that is over never changes again"
    assert was == now or was in SOURCES[now]
    assert row["attempt"] == before["attempt"] + (was == QUEUED and now == RUNNING)


def check_attempts(job: Known, row: dict[str, Any], attempts: list[dict[str, Any]]) -> None:
    outcomes = [attempt["outcome"] for attempt in attempts]
    still_open = [attempt["number"] for attempt in attempts if attempt["ended_at"] is None]
    assert outcomes == job.outcomes
    assert still_open == ([row["attempt"]] if job.status == RUNNING else [])
    assert outcomes.count("succeeded") == (job.status == JobStatus.SUCCEEDED)


def check_left(job: Known, rows: dict[str, list[dict[str, Any]]]) -> None:
    states = [row["step"] for row in rows["resume_states"]]
    told = {row["step"]: (row["attempt"], row["value"]) for row in rows["metrics"]}
    assert states == job.states and len(states) <= (0 if job.over else lease.RESUME_STATES)
    assert told == job.told
    assert {row["step"] for row in rows["checkpoints"]} == job.exports


def check_blobs(known: dict[str, Known], rows: list[dict[str, Any]], *, strays: set[str]) -> None:
    """What an attempt left half written ended with it; what a zombie writes is nobody's."""
    for row in rows:
        job_id, _, attempt = row["writer"].partition("/")
        job = known[job_id]
        runs = job.status == RUNNING and len(job.outcomes) == int(attempt)
        assert row["state"] != "writing" or runs or row["id"] in strays, row
        assert row["state"] != "ready" or row["id"] not in strays, row


@pytest.fixture(scope="module")
def basin(own_url: str) -> Iterator[Basin]:
    """Durability is not in question here: commits do not wait for the disk."""
    own = ApiSettings(
        database_url=own_url,
        redis_url="redis://nowhere",
        hub_models="hub/tiny",
        key_pepper=SecretStr("p" * 32),
    )
    with asyncio.Runner() as runner:
        db = Database(f"{own_url}&options=-csynchronous_commit%3Doff")
        yield Basin(runner, db, own)
        runner.run(db.close())


def test_the_states_hold_whatever_happens(basin: Basin):
    run(basin, QUICK)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_states_hold_whatever_happens_for_long(basin: Basin):
    run(basin, THOROUGH)


def run(basin: Basin, profile: settings) -> None:
    machine = type("BoundJobs", (Jobs,), {"basin": basin})
    run_state_machine_as_test(machine, settings=settings(profile, **UNTIMED))
