"""What waits for a run on a worker: it becomes the run, or is gone with its worker."""

import psutil
import pytest

from tests.chaos.cluster import Cluster, kill
from tests.chaos.invariants import BODY
from tests.held import processes_of
from tests.waiting import wait_until

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("no_workers_between")]
LONG = BODY | {"training": {"max_steps": 100_000}}
SHORT = BODY | {"training": {"max_steps": 2}}


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_job_begins_in_what_waits_and_is_cancelled_and_leaves_nothing(cluster: Cluster):
    worker = cluster.start_worker()
    warm = cluster.wait_for_warm(worker)

    job_id = cluster.submit(**LONG)
    cluster.wait_for_step(job_id, 1)
    (run,) = processes_of(job_id)
    with cluster.http as http:
        http.post(f"/fine_tuning/jobs/{job_id}/cancel").raise_for_status()
    job = cluster.wait(job_id)

    assert run == warm and gone(run) and not processes_of(job_id)
    assert job["status"] == "cancelled"


def test_where_what_waits_was_killed_a_job_starts_by_itself(cluster: Cluster):
    worker = cluster.start_worker()
    warm = cluster.wait_for_warm(worker)

    kill(warm)
    job = cluster.wait(cluster.submit(**SHORT))

    assert (job["status"], job["attempt"]) == ("succeeded", 1)


def test_what_waits_and_what_runs_die_with_their_worker(cluster: Cluster):
    worker = cluster.start_worker(devices="cpu,cpu")
    cluster.wait_for_warm(worker)
    job_id = cluster.submit(**LONG)
    cluster.wait_for_step(job_id, 1)
    (run,) = processes_of(job_id)
    warm = cluster.wait_for_warm(worker)

    worker.process.kill()
    worker.process.wait()

    wait_until(lambda: gone(run) and gone(warm), timeout_s=10)


def test_a_worker_that_is_told_to_stop_saves_its_run_and_leaves_no_process(cluster: Cluster):
    worker = cluster.start_worker(devices="cpu,cpu")
    cluster.wait_for_warm(worker)
    job_id = cluster.submit(**LONG)
    cluster.wait_for_step(job_id, 1)
    started = psutil.Process(worker.process.pid).children(recursive=True)

    worker.process.terminate()
    worker.process.wait(60)

    assert cluster.attempts(job_id)[-1]["outcome"] == "interrupted"
    assert len(started) >= 2 and all(map(gone, started))
    assert cluster.sql("SELECT step FROM resume_states WHERE job_id = %s", job_id)
