"""Whatever dies, the job ends well, with the bits of a run that was left alone."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.broker import Bell, make_celery
from tests.chaos.cluster import Cluster, Worker, freeze, kill, thaw
from tests.chaos.invariants import BODY, STEPS, assert_all_is_well
from tests.factories import preference_row, to_jsonl
from tests.held import (
    hold,
    let_go,
    let_go_once_asked_to_stop,
    newest_run,
    processes_of,
    steps_taken,
)
from tests.waiting import wait_until, within
from worker.rundir import RunDir

slow = pytest.mark.slow
pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("no_workers_between")]


def hurry(cluster: Cluster, job_id: str) -> None:
    """Let a killed run be tried again now."""
    wait_until(lambda: cluster.job(job_id)["status"] != "running", timeout_s=30)
    cluster.sql("UPDATE jobs SET retry_at = NULL WHERE id = %s", job_id)


def kill_run(cluster: Cluster, job_id: str) -> None:
    for process in processes_of(job_id):
        kill(process)


# the trainer


@pytest.mark.parametrize(
    "moment",
    [
        "in the middle",
        pytest.param("before the first step", marks=slow),
        pytest.param("while saving", marks=slow),
    ],
)
def test_the_trainer_is_killed(cluster: Cluster, undisturbed: str, moment: str):
    worker = cluster.start_worker()
    job_id = cluster.submit(**BODY)

    wait_for(cluster, worker, job_id, moment)
    kill_run(cluster, job_id)
    hurry(cluster, job_id)
    cluster.wait(job_id)

    assert_all_is_well(cluster, job_id, undisturbed)
    assert [each["outcome"] for each in cluster.attempts(job_id)] == ["killed", "succeeded"]


def wait_for(cluster: Cluster, worker: Worker, job_id: str, moment: str) -> None:
    if moment == "before the first step":
        wait_until(lambda: bool(processes_of(job_id)), timeout_s=60)
    elif moment == "while saving":
        wait_until(lambda: steps_taken(worker.data, job_id) >= 1, timeout_s=120)
        wait_until(lambda: is_saving(newest_run(worker.data, job_id)), timeout_s=60)
    else:
        hold(worker.data, job_id, after_step=STEPS // 3)


def is_saving(run: RunDir | None) -> bool:
    """Look hard for a tenth of a second: a save takes a few milliseconds."""
    assert run is not None
    deadline = time.monotonic() + 0.1
    while time.monotonic() < deadline:
        for folder in run.checkpoints.glob("checkpoint-*"):
            if not (folder / "complete").exists():
                return True
    return False


# the worker


def test_the_machine_is_lost_and_another_carries_on(cluster: Cluster, undisturbed: str):
    lost = cluster.start_worker()
    job_id = cluster.submit(**BODY)
    stored = lose_machine(cluster, lost, job_id)
    cluster.start_worker()
    cluster.wait(job_id)

    assert_all_is_well(cluster, job_id, undisturbed)
    first, second = cluster.attempts(job_id)
    assert (first["outcome"], second["first_step"]) == ("lost", stored + 1)


@slow
def test_a_reference_outlives_the_machine_that_measured_it(cluster: Cluster):
    rows = to_jsonl([preference_row(number) for number in range(24)])
    method = {"type": "dpo", "dpo": {"hyperparameters": BODY["hyperparameters"]}}
    asked = {"training": BODY["training"], "method": method, "peft": {"method": "pissa", "r": 4}}
    lost = cluster.start_worker()
    undisturbed = cluster.submit(rows=rows, **asked)
    cluster.wait(undisturbed)
    job_id = cluster.submit(rows=rows, **asked)

    lose_machine(cluster, lost, job_id)
    cluster.start_worker()
    cluster.wait(job_id)

    assert_all_is_well(cluster, job_id, cluster.weights(undisturbed))


def lose_machine(cluster: Cluster, worker: Worker, job_id: str) -> int:
    """Kill a worker once a part of its run is stored, with its disk; return how many steps are."""
    hold(worker.data, job_id, after_step=STEPS // 2)
    wait_until(lambda: stored_steps(cluster, job_id) >= STEPS // 4, timeout_s=120)
    cluster.kill_worker(worker)
    stored = stored_steps(cluster, job_id)
    shutil.rmtree(worker.data)
    cluster.expire(job_id)
    return stored


def stored_steps(cluster: Cluster, job_id: str) -> int:
    rows = cluster.sql("SELECT max(step) FROM resume_states WHERE job_id = %s", job_id)
    return int(rows[0][0] or 0)


@slow
def test_the_worker_alone_is_killed_and_its_run_ends_with_it(cluster: Cluster, undisturbed: str):
    worker = cluster.start_worker()
    job_id = cluster.submit(**BODY)
    hold(worker.data, job_id, after_step=STEPS // 3)

    worker.process.kill()
    assert within(10, lambda: not processes_of(job_id))
    cluster.expire(job_id)
    cluster.start_worker(data=worker.data)
    cluster.wait(job_id)

    assert_all_is_well(cluster, job_id, undisturbed)
    assert cluster.attempts(job_id)[1]["first_step"] > STEPS // 3 - 20


@slow
def test_the_worker_is_killed_after_the_adapter_was_saved(cluster: Cluster, undisturbed: str):
    worker = cluster.start_worker()
    job_id = cluster.submit(**BODY)
    hold(worker.data, job_id, after_step=STEPS // 2)

    freeze(worker.process)  # it would have taken the adapter before the test sees it
    let_go(job_id)
    wait_until(lambda: saved_adapter(worker, job_id), timeout_s=60)
    cluster.kill_worker(worker)
    cluster.expire(job_id)
    cluster.start_worker()
    cluster.wait(job_id)

    assert_all_is_well(cluster, job_id, undisturbed)


def saved_adapter(worker: Worker, job_id: str) -> bool:
    run = newest_run(worker.data, job_id)
    return run is not None and run.adapter.exists()


@slow
def test_a_worker_that_was_frozen_past_its_lease_writes_nothing_more(
    cluster: Cluster, undisturbed: str
):
    frozen = cluster.start_worker()
    job_id = cluster.submit(**BODY)
    hold(frozen.data, job_id, after_step=STEPS // 4)

    freeze(frozen.process)
    let_go(job_id)
    cluster.expire(job_id)
    cluster.start_worker()
    wait_until(lambda: len(cluster.attempts(job_id)) == 2, timeout_s=60)
    thaw(frozen.process)
    cluster.wait(job_id)

    assert_all_is_well(cluster, job_id, undisturbed)
    assert [each["outcome"] for each in cluster.attempts(job_id)] == ["lost", "succeeded"]


@slow
def test_a_worker_shuts_down_in_the_middle_and_another_carries_on(
    cluster: Cluster, undisturbed: str
):
    first = cluster.start_worker()
    job_id = cluster.submit(**BODY)
    hold(first.data, job_id, after_step=STEPS // 4)

    first.process.terminate()
    let_go_once_asked_to_stop(job_id)
    first.process.wait(60)
    left = processes_of(job_id)
    cluster.start_worker()
    cluster.wait(job_id)

    assert not left and not any((first.data / "runs").iterdir())
    assert_all_is_well(cluster, job_id, undisturbed)
    interrupted, succeeded = cluster.attempts(job_id)
    assert succeeded["first_step"] == interrupted["last_step"] + 1


# the API


@slow
def test_the_api_is_killed(cluster: Cluster, undisturbed: str):
    cluster.start_worker()
    job_id = cluster.submit(**BODY)
    cluster.wait_for_step(job_id, 1)

    cluster.kill_api()
    cluster.start_api()
    cluster.wait(job_id)

    assert_all_is_well(cluster, job_id, undisturbed)
    assert len(cluster.attempts(job_id)) == 1


# PostgreSQL


def test_postgresql_is_killed_and_comes_back(cluster: Cluster, undisturbed: str):
    worker = cluster.start_worker()
    job_id = cluster.submit(**BODY)
    hold(worker.data, job_id, after_step=STEPS // 4)

    cluster.kill_server("postgres")
    with cluster.http as http:
        refused = http.get(f"/fine_tuning/jobs/{job_id}")
    taken = steps_taken(worker.data, job_id)
    let_go(job_id)
    trains_on = within(30, lambda: steps_taken(worker.data, job_id) > taken)
    cluster.start_postgres()
    cluster.wait(job_id)

    assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
    assert trains_on
    assert_all_is_well(cluster, job_id, undisturbed)
    assert len(cluster.attempts(job_id)) == 1


@slow
def test_postgresql_is_away_for_longer_than_a_lease(cluster: Cluster, undisturbed: str):
    worker = cluster.start_worker()
    job_id = cluster.submit(**BODY)
    hold(worker.data, job_id, after_step=STEPS // 4)

    cluster.kill_server("postgres")
    ended = within(60, lambda: not processes_of(job_id))
    cluster.start_postgres()
    cluster.expire(job_id)
    cluster.wait(job_id)

    assert ended, "the run went on when another worker could have taken the job"
    assert_all_is_well(cluster, job_id, undisturbed)


@slow
def test_postgresql_hangs_for_longer_than_a_lease(cluster: Cluster, undisturbed: str):
    worker = cluster.start_worker()
    job_id = cluster.submit(**BODY)
    hold(worker.data, job_id, after_step=STEPS // 4)

    cluster.signal_server("postgres", signal.SIGSTOP)
    ended = within(60, lambda: not processes_of(job_id))
    cluster.signal_server("postgres", signal.SIGCONT)
    cluster.expire(job_id)
    cluster.wait(job_id)

    assert ended, "the run went on when another worker could have taken the job"
    assert_all_is_well(cluster, job_id, undisturbed)


# Redis


def test_redis_is_away_and_a_job_starts_without_it(cluster: Cluster, undisturbed: str):
    cluster.start_worker()
    cluster.kill_server("redis")
    try:
        job_id = cluster.submit(**BODY)
        cluster.wait(job_id)
    finally:
        cluster.start_redis()

    assert_all_is_well(cluster, job_id, undisturbed)


@slow
def test_every_message_is_lost(cluster: Cluster, undisturbed: str):
    import redis

    job_id = cluster.submit(**BODY)
    with redis.Redis.from_url(cluster.services.redis_url) as client:
        client.flushall()

    cluster.start_worker()
    cluster.wait(job_id)

    assert_all_is_well(cluster, job_id, undisturbed)


@slow
def test_messages_come_many_times_and_late(cluster: Cluster, undisturbed: str):
    bell = Bell(make_celery(cluster.services.redis_url))
    cluster.start_worker(devices="cpu,cpu")
    job_id = cluster.submit(**BODY)
    for _ in range(5):
        bell.wake(job_id)
    cluster.wait_for_step(job_id, STEPS // 4)

    for _ in range(20):
        bell.wake(job_id)
    cluster.wait(job_id)
    bell.wake(job_id)

    assert_all_is_well(cluster, job_id, undisturbed)
    assert len(cluster.attempts(job_id)) == 1


# disk and clock


@pytest.fixture
def small_disk(cluster: Cluster) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = cluster.root / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@slow
def test_the_disk_is_full_on_one_machine(cluster: Cluster, undisturbed: str, small_disk: Path):
    full = cluster.start_worker(data=small_disk)
    job_id = cluster.submit(**BODY)
    wait_until(lambda: ended_attempts(cluster, job_id) > 0, timeout_s=90)

    cluster.kill_worker(full)
    hurry(cluster, job_id)
    cluster.start_worker()
    cluster.wait(job_id)

    assert_all_is_well(cluster, job_id, undisturbed)
    first = cluster.attempts(job_id)[0]
    assert first["outcome"] == "killed" and "disk is full" in first["reason"]


def ended_attempts(cluster: Cluster, job_id: str) -> int:
    return sum(each["ended_at"] is not None for each in cluster.attempts(job_id))


@slow
def test_the_databases_clock_jumps_past_the_lease(cluster: Cluster, undisturbed: str):
    worker = cluster.start_worker()
    job_id = cluster.submit(**BODY)
    hold(worker.data, job_id, after_step=STEPS // 4)

    # The same to a lease: the clock it is measured by is far past it. Its worker is frozen for the
    # moment, so that it is the sweep that sees it first.
    freeze(worker.process)
    let_go(job_id)
    cluster.expire(job_id)
    sweeps = [
        subprocess.Popen(
            [sys.executable, "-m", "app.cli", "sweep"],
            env=cluster._environment(cluster.root / "sweep"),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [sweep.communicate(timeout=60)[0] for sweep in sweeps]
    thaw(worker.process)
    cluster.wait(job_id)

    assert sorted(line.splitlines()[0] for line in said) == ["0 requeued", "1 requeued"]
    assert_all_is_well(cluster, job_id, undisturbed)


# stop requests


@slow
@pytest.mark.parametrize("gpus", [1, 2])
def test_a_cancel_is_over_in_ten_seconds_and_leaves_no_process(cluster: Cluster, gpus: int):
    cluster.start_worker(devices="cpu,cpu")
    endless = {"training": {"max_steps": 100_000}, "hyperparameters": {"batch_size": 4}}
    job_id = cluster.submit(**endless, resources={"gpus": gpus})
    cluster.wait_for_step(job_id, 2)
    processes = processes_of(job_id)

    with cluster.http as http:
        http.post(f"/fine_tuning/jobs/{job_id}/cancel")
    cancelled = within(10, lambda: cluster.job(job_id)["status"] == "cancelled")

    assert len(processes) >= gpus and cancelled
    assert not processes_of(job_id)


@slow
def test_a_cancel_does_not_wait_for_a_dead_worker(cluster: Cluster):
    lost = cluster.start_worker()
    job_id = cluster.submit(**BODY)
    hold(lost.data, job_id, after_step=2)
    cluster.kill_worker(lost)
    cluster.start_worker()

    with cluster.http as http:
        http.post(f"/fine_tuning/jobs/{job_id}/cancel")

    assert cluster.wait(job_id, timeout_s=30)["status"] == "cancelled"
    assert cluster.attempts(job_id)[0]["outcome"] == "lost"


@slow
def test_a_job_that_kills_its_worker_every_time_is_failed(cluster: Cluster):
    job_id = cluster.submit(**BODY | {"training": {"max_steps": 100_000}})
    for _ in range(3):
        worker = cluster.start_worker()
        wait_until(lambda: bool(processes_of(job_id)), timeout_s=60)
        cluster.kill_worker(worker)
        cluster.expire(job_id)
    cluster.start_worker()

    job = cluster.wait(job_id, timeout_s=30)

    assert (job["status"], job["error"]["code"]) == ("failed", "poison")
    assert [each["outcome"] for each in cluster.attempts(job_id)] == ["lost"] * 3
