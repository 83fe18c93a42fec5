"""No job is lost and none is done twice, whatever dies: many tiny jobs under steady killing.

`python -m bench.soak --jobs 200 --workers 2` starts a whole Basin of its own, submits the jobs and
kills or freezes something at random every few seconds, until all of them are over. Nothing is
hurried: a job whose worker died waits for its lease to run out, up to a minute. It exits 1 when a
job was lost or done twice, when an adapter is not, bit for bit, that of a run that was left alone,
when the adapter of a step is missing, or when `basin fsck` would find something. A job may honestly
fail: what hit it three times in a row, by its code, stands in the table.
"""

import asyncio
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import psycopg
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from app import fsck
from app.db import connected
from app.fsck import Finding
from tests.chaos.cluster import OVER, Cluster, Worker, freeze, kill, running, thaw
from tests.chaos.invariants import missing_checkpoints
from tests.factories import make_model_folder

STEPS, CHECKPOINT_STEPS = 6, 2
BODY = {
    "training": {"max_steps": STEPS, "checkpoint_steps": CHECKPOINT_STEPS},
    "hyperparameters": {"batch_size": 4},
    "peft": {"method": "lora", "r": 4, "dropout": 0.1},
}
# Servers more often: what kills a run costs a job one of three lives.
TRAINER, WORKER, FREEZE = "trainer killed", "worker killed", "worker frozen"
REDIS, POSTGRES = "Redis killed", "PostgreSQL killed"
WEIGHTS = {TRAINER: 1, WORKER: 1, FREEZE: 1, REDIS: 2, POSTGRES: 2}
FREEZE_S = (2.0, 20.0)
LONG_FREEZE_S = 75.0  # past the lease: another worker takes the job
LONG_FREEZES = 0.2  # of all
AWAY_S = (0.0, 3.0)  # before a server is started again
STUCK_S = 600.0  # without the end of any job: what is left is lost
LOOK_S = 1.0


@dataclass
class Mischief:
    """Kills and freezes, and brings back what has to be there; counts what it did."""

    cluster: Cluster
    rng: random.Random
    done: Counter[str] = field(default_factory=Counter)
    frozen: dict[int, tuple[Worker, float]] = field(default_factory=dict)  # until when

    def one(self) -> None:
        """Do one thing; nothing where there is nobody to do it to."""
        (kind,) = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
        deeds = {
            TRAINER: self._trainer,
            WORKER: self._worker,
            FREEZE: self._freeze,
            REDIS: self._redis,
            POSTGRES: self._postgres,
        }
        self.done[kind] += deeds[kind]()

    def thaw(self, *, everybody: bool = False) -> None:
        """Wake the workers whose time has come."""
        for pid, (worker, until) in list(self.frozen.items()):
            if everybody or time.monotonic() >= until:
                thaw(worker.process)
                del self.frozen[pid]

    def _trainer(self) -> bool:
        runs = [
            child
            for worker in self._workers()
            for child in psutil.Process(worker.process.pid).children()
            if child not in self.cluster.warm(worker)
        ]
        if runs:
            kill(self.rng.choice(runs))
        return bool(runs)

    def _worker(self) -> bool:
        """Lose a machine with all that runs there; it starts again, with its disk."""
        worker = self.rng.choice(self._workers())
        self.frozen.pop(worker.process.pid, None)
        self.cluster.kill_worker(worker)
        self.cluster.start_worker(data=worker.data)
        return True

    def _freeze(self) -> bool:
        awake = [each for each in self._workers() if each.process.pid not in self.frozen]
        if not awake:
            return False
        worker = self.rng.choice(awake)
        long = self.rng.random() < LONG_FREEZES
        lasts_s = LONG_FREEZE_S if long else self.rng.uniform(*FREEZE_S)
        freeze(worker.process)
        self.frozen[worker.process.pid] = (worker, time.monotonic() + lasts_s)
        return True

    def _redis(self) -> bool:
        self.cluster.kill_server("redis")
        time.sleep(self.rng.uniform(*AWAY_S))
        self.cluster.start_redis()
        return True

    def _postgres(self) -> bool:
        self.cluster.kill_server("postgres")
        time.sleep(self.rng.uniform(*AWAY_S))
        self.cluster.start_postgres()
        return True

    def _workers(self) -> list[Worker]:
        return [each for each in self.cluster.workers if each.process.poll() is None]


@dataclass
class Verdict:
    """What became of the jobs."""

    submitted: int
    statuses: Counter[str]
    codes: Counter[str]
    lost: list[str]
    duplicated: list[str]
    incomplete: list[str]
    differing: list[str]
    findings: list[Finding]

    @property
    def good(self) -> bool:
        wrong = self.lost, self.duplicated, self.incomplete, self.differing, self.findings
        return not any(wrong)


def main(
    jobs: Annotated[int, typer.Option(min=1, help="How many to submit.")] = 200,
    workers: Annotated[int, typer.Option(min=1, help="Workers of one device each.")] = 2,
    seed: Annotated[int, typer.Option(help="Of what is killed, and when.")] = 0,
    kill_every: Annotated[float, typer.Option(min=0.1, help="Seconds, on average.")] = 4.0,
) -> None:
    """Run many tiny jobs under steady killing and say what became of them."""
    console, began = Console(), time.monotonic()
    with small_model() as models, running(models) as cluster:
        for _ in range(workers):
            cluster.start_worker()
        undisturbed = left_alone(cluster)
        ids = [cluster.submit(**BODY) for _ in range(jobs)]
        mischief = Mischief(cluster, random.Random(seed))
        try:
            disturb(cluster, ids, mischief, kill_every=kill_every, console=console)
        finally:
            mischief.thaw(everybody=True)
        verdict = judge(cluster, ids, undisturbed)
        show(verdict, mischief.done, seconds=time.monotonic() - began, console=console)
        if not verdict.good:
            console.print(f"The logs are kept in {keep_logs(cluster)}")
            raise typer.Exit(1)


@contextmanager
def small_model() -> Iterator[Path]:
    """Make a random LLaMA that trains in no time."""
    with tempfile.TemporaryDirectory(prefix="basin-soak-") as folder:
        make_model_folder(Path(folder) / "tiny-llama")
        yield Path(folder)


def left_alone(cluster: Cluster) -> str:
    """Return the hash of the weights that every job must end with."""
    job_id = cluster.submit(**BODY)
    job = cluster.wait(job_id)
    assert job["status"] == "succeeded", job["error"]
    return cluster.weights(job_id)


def disturb(
    cluster: Cluster, ids: list[str], mischief: Mischief, *, kill_every: float, console: Console
) -> None:
    """Kill something every few seconds until every job is over, or nothing moves any more."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("jobs over", total=len(ids))
        over, moved_at, next_at = 0, time.monotonic(), 0.0
        while over < len(ids) and time.monotonic() - moved_at < STUCK_S:
            mischief.thaw()
            if time.monotonic() >= next_at:
                mischief.one()
                next_at = time.monotonic() + kill_every * mischief.rng.uniform(0.5, 1.5)
            time.sleep(LOOK_S)
            found = len(statuses(cluster, ids))
            if found > over:
                over, moved_at = found, time.monotonic()
            told = ", ".join(f"{kind} {count}" for kind, count in mischief.done.items() if count)
            progress.update(task, completed=over, description=f"jobs over · {told}")


def statuses(cluster: Cluster, ids: list[str]) -> dict[str, tuple[str, str | None]]:
    """Return status and error code of those that are over; none while the database is away."""
    query = "SELECT id, status, error_code FROM jobs WHERE id = ANY(%s) AND status = ANY(%s)"
    try:
        rows = cluster.sql(query, ids, list(OVER))
    except psycopg.OperationalError:
        return {}
    return {job_id: (status, code) for job_id, status, code in rows}


def judge(cluster: Cluster, ids: list[str], undisturbed: str) -> Verdict:
    """Look at every job, and at everything that is stored."""
    over = statuses(cluster, ids)
    succeeded = [job_id for job_id, (status, _) in over.items() if status == "succeeded"]
    twice = cluster.sql(
        "SELECT job_id FROM attempts WHERE outcome = 'succeeded' GROUP BY job_id"
        " HAVING count(*) > 1 UNION SELECT job_id FROM job_events"
        " WHERE message = 'New fine-tuned model created' GROUP BY job_id HAVING count(*) > 1"
    )
    return Verdict(
        submitted=len(ids),
        statuses=Counter(status for status, _ in over.values()),
        codes=Counter(code for _, code in over.values() if code),
        lost=[job_id for job_id in ids if job_id not in over],
        duplicated=[job_id for (job_id,) in twice],
        incomplete=[
            job_id
            for job_id in succeeded
            if missing_checkpoints(cluster, job_id, STEPS, every=CHECKPOINT_STEPS)
        ],
        differing=[job_id for job_id in succeeded if cluster.weights(job_id) != undisturbed],
        findings=asyncio.run(look_for_contradictions(cluster.services.database_url)),
    )


async def look_for_contradictions(database_url: str) -> list[Finding]:
    """Do what `basin fsck --deep` does."""
    async with connected(database_url) as db:
        async with db.transaction() as tx:
            found = await fsck.check(tx)
        return found + await fsck.check_bytes(db, found, lambda size: None)


def show(verdict: Verdict, kills: Counter[str], *, seconds: float, console: Console) -> None:
    codes = ", ".join(f"{code} {count}" for code, count in sorted(verdict.codes.items()))
    table = Table(title="soak")
    table.add_column("")
    table.add_column("jobs", justify="right")
    table.add_column("which")
    table.add_row("submitted", str(verdict.submitted))
    table.add_row("succeeded", str(verdict.statuses["succeeded"]))
    table.add_row("failed", str(verdict.statuses["failed"]), codes)
    table.add_row("lost", str(len(verdict.lost)), " ".join(verdict.lost))
    table.add_row("duplicated", str(len(verdict.duplicated)), " ".join(verdict.duplicated))
    table.add_row("lacking an export", str(len(verdict.incomplete)), " ".join(verdict.incomplete))
    table.add_row("other weights", str(len(verdict.differing)), " ".join(verdict.differing))
    table.add_section()
    for kind in WEIGHTS:
        table.add_row(kind, str(kills[kind]))
    table.add_section()
    table.add_row("wall time", f"{seconds / 60:.1f} min")
    console.print(table)
    for finding in verdict.findings:
        console.print(f"{finding.kind}: {finding.subject}: {finding.message}", markup=False)


def keep_logs(cluster: Cluster) -> Path:
    kept = Path(tempfile.mkdtemp(prefix="basin-soak-logs-"))
    for log in [*cluster.root.glob("*.log"), *cluster.root.glob("data/logs/*.log")]:
        shutil.copy(log, kept)
    return kept


if __name__ == "__main__":
    typer.run(main)
