"""A request that is sent again makes no second job."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from app.db import Database
from app.ids import token
from app.sweep import sweep_storage
from tests.app.records import run
from tests.conftest import Api
from tests.factories import jsonl

RETRY = {"x-stainless-retry-count": "1"}


@pytest.fixture(scope="module")
def body(client: openai.OpenAI) -> dict[str, Any]:
    file = client.files.create(file=("train.jsonl", jsonl(20)), purpose="fine-tune")
    return {"model": "tiny-llama", "training_file": file.id}


@pytest.fixture
def unique(body: dict[str, Any]) -> dict[str, Any]:
    """A body that no other test sends."""
    return body | {"suffix": token(12)}


def create(http: httpx.Client, body: dict[str, Any], **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.post("/fine_tuning/jobs", json=body, headers=named)


def created(http: httpx.Client, body: dict[str, Any], **headers: str) -> str:
    answer = create(http, body, **headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


@pytest.mark.parametrize("count", ["9" * 5000, "0" * 5000, "-1", "\xb2"])
def test_a_retry_count_that_is_none_does_no_harm(
    http: httpx.Client, unique: dict[str, Any], count: str
):
    headers = [(b"x-stainless-retry-count", count.encode("latin-1"))]

    answer = http.post("/fine_tuning/jobs", json=unique, headers=headers)

    assert answer.status_code == 200, answer.text


def test_an_idempotency_key_stands_for_one_job(http: httpx.Client, unique: dict[str, Any]):
    name = token(12)

    first = created(http, unique, idempotency_key=name)
    again = created(http, unique, idempotency_key=name)
    other = created(http, unique, idempotency_key=token(12))

    assert first == again != other


def test_requests_of_one_key_at_once_make_one_job(http: httpx.Client, unique: dict[str, Any]):
    name = token(12)

    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda _: created(http, unique, idempotency_key=name), range(4)))

    assert len(set(ids)) == 1


def test_an_idempotency_key_with_another_body_is_refused(
    http: httpx.Client, unique: dict[str, Any]
):
    name = token(12)
    created(http, unique, idempotency_key=name)

    refused = create(http, unique | {"seed": 1}, idempotency_key=name)

    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "idempotency_key_reused"


async def test_an_idempotency_key_is_forgotten_after_a_day(
    http: httpx.Client, unique: dict[str, Any], db: Database
):
    name = token(12)
    first = created(http, unique, idempotency_key=name)
    await run(
        db,
        "UPDATE submissions SET created_at = now() - interval '25 hours' WHERE job_id = :id",
        id=first,
    )

    later = created(http, unique | {"seed": 1}, idempotency_key=name)

    assert later != first


async def test_the_sweep_forgets_requests_of_yesterday(
    http: httpx.Client, unique: dict[str, Any], db: Database
):
    job_id = created(http, unique, idempotency_key=token(12))
    await run(
        db,
        "UPDATE submissions SET created_at = now() - interval '25 hours' WHERE job_id = :id",
        id=job_id,
    )

    await sweep_storage(db, file_retention_days=None, resume_retention_days=30)

    left = "SELECT count(*) FROM submissions WHERE job_id = :id"
    assert await run(db, left, id=job_id) == 0
    assert http.get(f"/fine_tuning/jobs/{job_id}").status_code == 200


def test_a_retry_of_the_client_finds_the_first_job(http: httpx.Client, unique: dict[str, Any]):
    first = created(http, unique)

    retried = http.post("/fine_tuning/jobs", json=unique, headers=RETRY).json()["id"]
    second = created(http, unique)

    assert retried == first != second


def test_a_retry_whose_first_try_never_came_makes_the_job(
    http: httpx.Client, unique: dict[str, Any]
):
    retried = http.post("/fine_tuning/jobs", json=unique, headers=RETRY)

    assert retried.status_code == 200


async def test_a_retry_after_ten_minutes_is_a_new_wish(
    http: httpx.Client, unique: dict[str, Any], db: Database
):
    first = created(http, unique)
    await run(
        db,
        "UPDATE submissions SET created_at = now() - interval '11 minutes' WHERE job_id = :id",
        id=first,
    )

    retried = http.post("/fine_tuning/jobs", json=unique, headers=RETRY).json()["id"]

    assert retried != first


def test_a_retry_with_another_api_key_is_somebody_elses(
    http: httpx.Client, api: Api, organization: str, unique: dict[str, Any]
):
    first = created(http, unique)

    with api.http(api.key(organization)) as colleague:
        other = colleague.post("/fine_tuning/jobs", json=unique, headers=RETRY).json()["id"]

    assert other != first


def test_another_tenants_idempotency_key_is_its_own(
    http: httpx.Client, stranger: httpx.Client, unique: dict[str, Any]
):
    name = token(12)
    created(http, unique, idempotency_key=name)

    refused = create(stranger, unique, idempotency_key=name)

    assert refused.status_code == 404 and unique["training_file"] in refused.text
