"""What an organization may use: jobs that run, jobs that wait, GPU-hours and bytes."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from app.db import Database, connected
from app.ids import token
from app.jobs import lease
from app.jobs.lease import Claim
from app.keys.service import Scope
from app.settings import ApiSettings
from tests.app.records import run_now
from tests.app.test_cli import basin
from tests.app.test_jobs_api import JOBS, submit
from tests.conftest import Api, environment
from tests.factories import jsonl


@pytest.fixture
def org() -> str:
    return f"limited-{token(6)}"


@pytest.fixture
def http(api: Api, org: str) -> Iterator[httpx.Client]:
    with api.http(api.key(org, Scope.ADMIN)) as client:
        yield client


@pytest.fixture
def training_file(http: httpx.Client) -> str:
    return upload(http, jsonl(20)).json()["id"]


def upload(http: httpx.Client, data: bytes) -> httpx.Response:
    file = {"file": ("train.jsonl", data)}
    return http.post("/files", files=file, data={"purpose": "fine-tune"})


def limit(settings: ApiSettings, org: str, **limits: int | None) -> None:
    values = ", ".join(f"{column} = :{column}" for column in limits)
    statement = f"UPDATE organizations SET {values} WHERE name = :org"
    run_now(settings, statement, org=org, **limits)


def refusal(answer: httpx.Response) -> str:
    error = answer.json()["error"]
    assert answer.status_code == 429, answer.text
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "quota_exceeded" and answer.headers["x-should-retry"] == "false"
    assert 1 <= int(answer.headers["retry-after"]) <= 31 * 24 * 3600
    return error["message"]


async def claim(db: Database) -> Claim | None:
    async with db.transaction() as tx:
        return await lease.claim(tx, "worker", free=8)


@pytest.mark.usefixtures("empty_queue")
def test_a_tenant_at_its_limit_is_passed_over_and_told_so(
    api: Api, settings: ApiSettings, http: httpx.Client, training_file: str, org: str
):
    limit(settings, org, max_running=1)
    first, second = (submit(http, training_file, priority=5).json()["id"] for _ in range(2))
    with api.http(api.key(f"other-{org}")) as other:
        others = submit(other, upload(other, jsonl(20)).json()["id"]).json()["id"]

    claims = asyncio.run(claims_of(settings, 3))
    shown = http.get(f"{JOBS}/{second}").json()["queue"]

    assert [each and each.job_id for each in claims] == [first, others, None]
    assert "as many jobs at once as it may" in shown["reason"] and shown["eta_s"] is None


@pytest.mark.usefixtures("empty_queue")
def test_the_next_job_starts_once_one_ends_or_the_limit_is_lifted(
    settings: ApiSettings, http: httpx.Client, training_file: str, org: str
):
    limit(settings, org, max_running=1)
    jobs = [submit(http, training_file).json()["id"] for _ in range(3)]
    (first,) = asyncio.run(claims_of(settings, 1))
    assert first is not None

    asyncio.run(end(settings, first))
    after_one = asyncio.run(claims_of(settings, 2))
    limit(settings, org, max_running=None)
    lifted = asyncio.run(claims_of(settings, 1))

    assert [each and each.job_id for each in after_one] == [jobs[1], None]
    assert [each and each.job_id for each in lifted] == [jobs[2]]


@pytest.mark.usefixtures("empty_queue")
def test_claims_at_the_same_moment_do_not_go_over_the_limit(
    settings: ApiSettings, http: httpx.Client, training_file: str, org: str
):
    limit(settings, org, max_running=1)
    for _ in range(2):
        submit(http, training_file)

    held, meanwhile = asyncio.run(overlapping_claims(settings))

    assert held is not None and meanwhile is None


def test_jobs_that_wait_are_counted_when_one_is_submitted_and_when_one_is_resumed(
    settings: ApiSettings, http: httpx.Client, training_file: str, org: str
):
    limit(settings, org, max_queued=2)
    first, _ = (submit(http, training_file).json()["id"] for _ in range(2))

    third = submit(http, training_file)
    http.post(f"{JOBS}/{first}/pause")
    instead = submit(http, training_file)
    resumed = http.post(f"{JOBS}/{first}/resume")

    assert "2 jobs of your organization wait, and at most 2 may" in refusal(third)
    assert instead.status_code == 200
    assert refusal(resumed)
    assert http.get(f"{JOBS}/{first}").json()["status"] == "paused"


def test_many_submits_at_once_do_not_go_over_the_limit(
    settings: ApiSettings, http: httpx.Client, training_file: str, org: str
):
    limit(settings, org, max_queued=3)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: submit(http, training_file), range(8)))

    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5


def test_gpu_hours_of_the_month_end_submits_and_say_when_they_begin_anew(
    settings: ApiSettings, http: httpx.Client, training_file: str, org: str
):
    limit(settings, org, gpu_seconds_per_month=7200)
    job_id = submit(http, training_file).json()["id"]
    hold_devices(settings, job_id, hours=1.5, gpus=2)

    refused = submit(http, training_file)
    shown = http.get("/organization/limits").json()

    message = refusal(refused)
    assert "3.00 GPU-hours of the 2.00 it may" in message and "the next month begins" in message
    assert shown["gpu_seconds_per_month"] == 7200
    assert shown["used"]["gpu_seconds"] == pytest.approx(10800, abs=1)
    assert http.get(f"{JOBS}/{job_id}").json()["status"] == "queued"


def test_what_ran_before_this_month_does_not_count(
    settings: ApiSettings, http: httpx.Client, training_file: str, org: str
):
    limit(settings, org, gpu_seconds_per_month=3600)
    job_id = submit(http, training_file).json()["id"]
    hold_devices(settings, job_id, hours=10, gpus=1, ended="date_trunc('month', now(), 'UTC')")

    assert submit(http, training_file).status_code == 200


def test_an_upload_that_does_not_fit_is_refused_and_leaves_nothing(
    settings: ApiSettings, http: httpx.Client, org: str
):
    kept = upload(http, jsonl(20)).json()
    limit(settings, org, max_stored_bytes=kept["bytes"] + 10)

    refused = upload(http, jsonl(20))
    http.delete(f"/files/{kept['id']}")
    instead = upload(http, jsonl(20))

    assert "delete files first" in refusal(refused)
    assert instead.status_code == 200
    used = http.get("/organization/limits").json()["used"]["stored_bytes"]
    assert used == instead.json()["bytes"]


def test_a_large_upload_is_refused_by_its_declared_length(
    settings: ApiSettings, http: httpx.Client, org: str
):
    limit(settings, org, max_stored_bytes=1000)
    blobs = "SELECT count(*) FROM blobs b JOIN organizations o ON o.id = organization_id"
    blobs += " WHERE o.name = :org"

    refused = upload(http, bytes(200_000))

    assert refusal(refused) and run_now(settings, blobs, org=org) == 0


def test_an_upload_in_parts_needs_room_for_its_bytes_once(
    settings: ApiSettings, http: httpx.Client, org: str
):
    http.get("/models")
    data = jsonl(200)
    limit(settings, org, max_stored_bytes=len(data))

    opened = announce(http, len(data)).json()["id"]
    part_id = http.post(f"/uploads/{opened}/parts", files={"data": data}).json()["id"]
    more = http.post(f"/uploads/{opened}/parts", files={"data": data})
    another = announce(http, 1)
    completed = http.post(f"/uploads/{opened}/complete", json={"part_ids": [part_id]})

    assert "delete files first" in refusal(more) and "delete files first" in refusal(another)
    assert completed.json()["status"] == "completed", completed.text
    assert http.get("/organization/usage").json()["stored_bytes"] == len(data)


def announce(http: httpx.Client, size: int) -> httpx.Response:
    about = {"filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    return http.post("/uploads", json=about | {"bytes": size})


def test_without_limits_there_are_none(http: httpx.Client):
    shown = http.get("/organization/limits").json()

    names = ("max_running", "max_queued", "gpu_seconds_per_month", "max_stored_bytes")
    assert [shown[name] for name in names] == [None] * 4
    assert shown["resets_at"] > 0 and shown["used"]["running"] == 0


def test_the_operator_sets_shows_and_lifts_limits(
    settings: ApiSettings, http: httpx.Client, org: str
):
    env = environment(settings) | {"COLUMNS": "200"}
    limits = ["--max-running", "2", "--max-queued", "100"]
    limits += ["--gpu-hours-per-month", "1.5", "--max-stored-gib", "0.5"]

    told = basin("orgs", "set", org, *limits, env=env)
    given = http.get("/organization/limits").json()
    lifted = basin("orgs", "set", org, "--max-running", "none", env=env).stdout
    listed = basin("orgs", "list", env=env).stdout

    assert told.returncode == 0 and "GPU-hours this month: 0.00 / 1.50" in told.stdout
    assert (given["max_running"], given["max_queued"]) == (2, 100)
    assert (given["gpu_seconds_per_month"], given["max_stored_bytes"]) == (5400, 1 << 29)
    assert "running: 0 / -" in lifted and "queued: 0 / 100" in lifted
    assert basin("orgs", "show", org, env=env).stdout == lifted
    assert org in listed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody", "--max-running", "1"], "No organization nobody"),
        (["nobody", "--max-running", "-1"], "no number"),
        (["nobody", "--max-queued", "1.5"], "no number"),
        (["nobody", "--max-stored-gib", "much"], "no number"),
        (["nobody", "--gpu-hours-per-month", "nan"], "no number"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(settings: ApiSettings, arguments: list[str], said: str):
    answer = basin("orgs", "set", *arguments, env=environment(settings))

    assert answer.returncode == 2 and said in answer.stderr and "Traceback" not in answer.stderr


def hold_devices(
    settings: ApiSettings, job_id: str, *, hours: float, gpus: int, ended: str = "now()"
) -> None:
    """Let a job have run, without its ceremony."""
    spec = "UPDATE jobs SET spec = jsonb_set(spec, '{resources,gpus}', :gpus) WHERE id = :id"
    run_now(settings, spec.replace(":gpus", f"'{gpus}'"), id=job_id)
    started = f"{ended} - interval '{hours} hours'"
    statement = (
        "INSERT INTO attempts (job_id, number, worker, started_at, ended_at)"
        f" VALUES (:id, 1, 'w', {started}, {ended})"
    )
    run_now(settings, statement, id=job_id)


async def claims_of(settings: ApiSettings, count: int) -> list[Claim | None]:
    async with connected(settings.database_url) as db:
        return [await claim(db) for _ in range(count)]


async def end(settings: ApiSettings, held: Claim) -> None:
    async with connected(settings.database_url) as db, db.transaction() as tx:
        await lease.cancel(tx, held)


async def overlapping_claims(settings: ApiSettings) -> tuple[Claim | None, Claim | None]:
    """A claim, and another one before the first is committed."""
    async with connected(settings.database_url) as db, db.transaction() as tx:
        first = await lease.claim(tx, "one", free=8)
        return first, await claim(db)
