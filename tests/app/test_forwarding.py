"""Metrics go on to W&B and MLflow from the job's own rows, and nothing there hurts a job."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import func, insert, text, update

from app.audit import Actor
from app.background import beside
from app.db import Database
from app.integrations import forwarder, forwards, service
from app.integrations.forwarder import Forwarder
from app.integrations.service import Target
from app.jobs.states import JobStatus
from app.settings import inherited_environment
from app.tables import Forward, Job, Metric
from app.vault import Vault
from tests.app.records import make_file, make_organization, new_job, run
from tests.receiver import receiving

pytest.importorskip("mlflow", reason="the extra `integrations` is not installed")
pytest.importorskip("wandb", reason="the extra `integrations` is not installed")

VAULT = Vault(["a key for this test only"])
API_KEY = "canary" + "0" * 34
WANDB = {"type": "wandb", "wandb": {"project": "p", "entity": None, "name": None, "tags": ["t"]}}


@pytest.fixture
async def organization_id(own: Database) -> str:
    await run(own, "DELETE FROM forwards")
    return await make_organization(own)


@pytest.fixture
def mlflow(tmp_path: Path) -> Path:
    return tmp_path / "mlflow.db"


async def begun(db: Database, organization_id: str, *targets: Target) -> str:
    """A job that runs, with metrics to send."""
    file = await make_file(db, organization_id)
    job = new_job(organization_id, file.id, JobStatus.RUNNING, integrations=[WANDB])
    async with db.transaction() as tx:
        tx.add(job)
        await tx.flush()
        forwards.begin(tx, job, targets)
    return job.id


async def trains(db: Database, job_id: str, *steps: int) -> None:
    rows = [
        {
            "job_id": job_id,
            "name": name,
            "step": step,
            "attempt": 1,
            "seq": step,
            "value": step / 10,
            "ts": func.now(),
        }
        for step in steps
        for name in ("train_loss", "lr")
    ]
    async with db.transaction() as tx:
        for row in rows:
            await tx.execute(insert(Metric).values(row))
        await tx.execute(update(Job).where(Job.id == job_id).values(step=steps[-1]))


async def ends(db: Database, job_id: str, status: JobStatus = JobStatus.SUCCEEDED) -> None:
    async with db.transaction() as tx:
        ended = {"status": status, "finished_at": func.now()}
        await tx.execute(update(Job).where(Job.id == job_id).values(**ended))


async def store_key(db: Database, organization_id: str) -> None:
    async with db.transaction() as tx:
        await service.store(tx, Actor(organization_id), API_KEY, vault=VAULT)


async def forward_of(db: Database, job_id: str) -> Forward:
    async with db.transaction() as tx:
        found = await tx.execute(text("SELECT * FROM forwards WHERE job_id = :id"), {"id": job_id})
        return found.one()  # type: ignore[return-value]


async def events_of(db: Database, job_id: str) -> list[Any]:
    query = "SELECT level, message, data FROM job_events WHERE job_id = :id ORDER BY seq"
    async with db.transaction() as tx:
        return list(await tx.execute(text(query), {"id": job_id}))


async def send_until(
    db: Database, job_id: str, true: Callable[[Any], bool], uri: str, **environment: str
) -> Any:
    """Forward until that is so of the job's forward, and return it."""
    sending = Forwarder(db, VAULT, inherited_environment() | environment, mlflow_tracking_uri=uri)
    async with beside(sending.run_forever), asyncio.timeout(120):
        while not true(await forward_of(db, job_id)):
            await asyncio.sleep(0.1)
    return await forward_of(db, job_id)


def stored(path: Path) -> tuple[list[Any], list[Any]]:
    """What MLflow has: its runs, and their metrics."""
    with closing(sqlite3.connect(path)) as database:
        runs = database.execute("SELECT name, status FROM runs").fetchall()
        metrics = database.execute("SELECT step, key, value FROM metrics ORDER BY 1, 2").fetchall()
    return runs, metrics


def of_steps(*steps: int) -> list[Any]:
    return [(step, name, step / 10) for step in steps for name in ("lr", "train_loss")]


async def test_mlflow_has_one_run_that_grows_and_ends_with_the_job(
    own: Database, organization_id: str, mlflow: Path
):
    job_id = await begun(own, organization_id, "mlflow")
    uri = f"sqlite:///{mlflow}"

    await trains(own, job_id, 1, 2, 3)
    grown = await send_until(own, job_id, lambda found: found.step > 0, uri)
    while_it_ran = stored(mlflow)
    await trains(own, job_id, 4)
    await ends(own, job_id)
    await run(own, "UPDATE forwards SET next_at = now()")
    done = await send_until(own, job_id, lambda found: found.state == "done", uri)

    # The third step may still get values while the job runs: an evaluation comes after it.
    assert grown.step == 2 and while_it_ran == ([(job_id, "RUNNING")], of_steps(1, 2))
    assert done.step == 4
    assert stored(mlflow) == ([(job_id, "FINISHED")], of_steps(1, 2, 3, 4))


async def test_wandb_is_told_in_a_process_that_alone_knows_the_key(
    own: Database, organization_id: str, tmp_path: Path
):
    await store_key(own, organization_id)
    job_id = await begun(own, organization_id, "wandb")
    await trains(own, job_id, 1, 2)
    await ends(own, job_id)
    kept = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}

    done = await send_until(own, job_id, lambda found: found.state == "done", "", **kept)

    (written,) = tmp_path.rglob(f"run-{job_id}.wandb")
    assert done.step == 2 and b"train_loss" in written.read_bytes()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if API_KEY.encode() in path.read_bytes()]


async def test_what_cannot_be_reached_is_a_warning_once_and_is_tried_again(
    own: Database, organization_id: str
):
    job_id = await begun(own, organization_id, "mlflow")
    await trains(own, job_id, 1)
    await ends(own, job_id)
    nowhere = "http://user:canary@127.0.0.1:1"

    await send_until(own, job_id, lambda found: found.failures == 1, nowhere)
    await run(own, "UPDATE forwards SET next_at = now()")
    twice = await send_until(own, job_id, lambda found: found.failures == 2, nowhere)

    (warned,) = await events_of(own, job_id)
    assert warned.level == "warn" and "MLflow" in warned.message
    assert "canary" not in warned.message and "127.0.0.1" not in warned.message
    assert twice.state == "pending" and twice.step == 0
    assert await run(own, "SELECT status FROM jobs WHERE id = :id", id=job_id) == "succeeded"


async def test_a_day_after_the_jobs_end_it_is_given_up(own: Database, organization_id: str):
    job_id = await begun(own, organization_id, "wandb")
    await ends(own, job_id)
    await run(own, "UPDATE jobs SET finished_at = now() - interval '25 hours'")

    over = await send_until(own, job_id, lambda found: found.failures == 1, "")

    (warned,) = await events_of(own, job_id)
    assert over.state == "given_up" and "for a day" in warned.message
    assert "key of Weights & Biases was deleted" in warned.message


async def test_what_hangs_is_ended_and_leaves_no_process(
    own: Database, organization_id: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(forwarder, "TIMEOUT_S", 8.0)
    job_id = await begun(own, organization_id, "mlflow")
    await ends(own, job_id)
    with receiving() as hanging:
        hanging.going_on.clear()
        tried = await send_until(
            own, job_id, lambda found: found.failures == 1, hanging.url.removesuffix("/hook")
        )

    assert tried.state == "pending"
    assert not [
        child
        for child in psutil.Process().children(recursive=True)
        if any("app.integrations" in word for word in child.cmdline())
    ]


async def test_two_never_send_the_same_and_a_late_one_changes_nothing(
    own: Database, organization_id: str
):
    job_id = await begun(own, organization_id, "mlflow")
    await trains(own, job_id, 1, 2)
    await ends(own, job_id)

    async with own.transaction() as tx:
        late = await forwards.claim(tx)
    async with own.transaction() as tx:
        second = await forwards.claim(tx)
    await run(own, "UPDATE forwards SET next_at = now()")
    async with own.transaction() as tx:
        third = await forwards.claim(tx)
    assert late is not None and third is not None and second is None
    async with own.transaction() as tx:
        await forwards.settle(tx, third, url=None, error=None)
    async with own.transaction() as tx:
        await forwards.settle(tx, late, url=None, error="late")

    found = await forward_of(own, job_id)
    assert (found.state, found.step, found.failures) == ("done", 2, 0)
    assert not await events_of(own, job_id)


async def test_many_steps_go_in_several_pieces(
    own: Database, organization_id: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(forwards, "MOST_ROWS", 5)
    job_id = await begun(own, organization_id, "mlflow")
    await trains(own, job_id, 1, 2, 3, 4)
    await ends(own, job_id)
    pieces = []

    while (await forward_of(own, job_id)).state == "pending":
        await run(own, "UPDATE forwards SET next_at = now()")
        async with own.transaction() as tx:
            due = await forwards.claim(tx)
            assert due is not None
            pieces.append(([step for step, _ in due.steps], due.status))
            await forwards.settle(tx, due, url=None, error=None)

    assert pieces == [([1, 2], None), ([3, 4], "succeeded")]
    assert due.steps[-1][1] == {"train_loss": 0.4, "lr": 0.4}
