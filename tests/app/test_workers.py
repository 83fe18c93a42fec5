"""A waiting job says why it waits, and for how long about."""

from datetime import UTC, datetime
from typing import Any

import httpx
import openai
import pytest

from app.workers.service import Lease, Node, wait_s, why_waiting
from tests.app.test_jobs_api import submit
from tests.e2e.jobs import create, wait

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def node(name: str, *, devices: int, busy: int = 0) -> Node:
    leases = tuple(Lease(f"ftjob-{n}", "org", 1, NOW) for n in range(busy))
    return Node(name, name, tuple(map(str, range(devices))), NOW, NOW, leases)


@pytest.mark.parametrize(
    ("nodes", "needed", "ahead", "said"),
    [
        ([], 1, 0, "No worker is alive"),
        ([node("small", devices=1)], 2, 0, "the largest, small, has 1"),
        ([node("box", devices=2, busy=1)], 2, 0, "needs 2 devices, and box has 1 free"),
        ([node("a", devices=1, busy=1), node("b", devices=2, busy=1)], 2, 0, "b has 1 free"),
        ([node("box", devices=1)], 1, 1, "1 job is before it"),
        ([node("box", devices=1)], 1, 3, "3 jobs are before it"),
        ([node("box", devices=1)], 1, 0, "starts within seconds"),
    ],
)
def test_the_reason_names_what_is_missing(nodes: list[Node], needed: int, ahead: int, said: str):
    assert said in why_waiting(nodes, needed=needed, ahead=ahead)


@pytest.mark.parametrize(
    ("nodes", "needed", "ahead", "typical_s", "expected"),
    [
        ([node("box", devices=2)], 1, 0, 100, 0),
        ([node("box", devices=2)], 1, 1, 100, 0),
        ([node("box", devices=2, busy=2)], 1, 0, 100, 50),
        ([node("box", devices=2, busy=2)], 1, 2, 100, 150),
        ([node("box", devices=1, busy=1)], 1, 3, 60, 210),
        ([node("box", devices=1)], 2, 0, 100, None),
        ([node("box", devices=1)], 1, 0, None, None),
        ([], 1, 0, 100, None),
    ],
)
def test_the_wait_is_told_in_rounds_of_typical_jobs(
    nodes: list[Node], needed: int, ahead: int, typical_s: float | None, expected: int | None
):
    assert wait_s(nodes, needed=needed, ahead=ahead, typical_s=typical_s) == expected


def test_without_a_worker_a_job_says_so(http: httpx.Client, training_file: str):
    job = submit(http, training_file).json()

    shown = http.get(f"/fine_tuning/jobs/{job['id']}").json()["queue"]

    assert shown["reason"]
    assert {"position", "ahead", "eta_s", "reason"} == set(shown)


@pytest.mark.usefixtures("worker")
def test_workers_show_what_runs_there_and_to_whom_it_belongs(
    http: httpx.Client, stranger: httpx.Client, client: openai.OpenAI, training_file: str
):
    job = create(client, training_file, training={"max_steps": 400})
    wait(client, job.id, until=("running",))

    mine, theirs = (caller.get("/workers").json()["data"] for caller in (http, stranger))

    ran: list[dict[str, Any]] = [lease for each in mine for lease in each["leases"]]
    assert [each["devices"] for each in mine if each["leases"]] == [["cpu"]]
    assert [each["free"] for each in mine if each["leases"]] == [0]
    assert [lease["job_id"] for lease in ran] == [job.id]
    assert [lease["job_id"] for each in theirs for lease in each["leases"]] == [None]
    client.fine_tuning.jobs.cancel(job.id)
    wait(client, job.id)
