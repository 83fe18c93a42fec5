"""Whatever goes wrong, the answer is OpenAI's envelope, with a request id."""

import httpx
import pytest

from app.keys.service import Scope
from tests.conftest import Api


def envelope(answer: httpx.Response) -> tuple[int, str | None]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, answer.text
    assert error["message"] and answer.headers["x-request-id"].startswith("req_")
    return answer.status_code, error["code"]


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/nowhere", (404, "not_found")),
        ("GET", "/files/", (404, "not_found")),
        ("POST", "/fine_tuning/jobs/", (404, "not_found")),
        ("PUT", "/files", (405, "method_not_allowed")),
        ("PATCH", "/fine_tuning/jobs", (405, "method_not_allowed")),
        ("GET", "/uploads", (405, "method_not_allowed")),
        ("DELETE", "/models", (405, "method_not_allowed")),
        ("GET", "/fine_tuning/jobs?limit=101", (400, "invalid_value")),
        ("GET", "/files?order=up", (400, "invalid_value")),
        ("GET", "/files?after=file-1&after=file-2", (400, "invalid_value")),
        ("GET", "/fine_tuning/jobs/ftjob-none", (404, "not_found")),
        ("GET", "/models/none", (404, "not_found")),
    ],
)
def test_every_refusal_has_the_envelope(
    http: httpx.Client, method: str, path: str, expected: tuple[int, str]
):
    assert envelope(http.request(method, path)) == expected


def test_a_wrong_method_is_told_the_right_ones(http: httpx.Client):
    allowed = [http.put(path).headers["allow"] for path in ("/uploads", "/files/file-none")]

    assert allowed == ["POST", "GET, DELETE"]


def test_a_path_of_its_own_is_not_also_an_id(api: Api):
    with api.http(api.key("overlapping", Scope.ADMIN)) as admin:
        own, other = (admin.delete(f"/organization/keys/{name}") for name in ("self", "selfless"))

    assert envelope(own) == (405, "method_not_allowed") and own.headers["allow"] == "GET"
    assert envelope(other) == (404, "not_found")


@pytest.mark.parametrize("number", [True, "8", 8.5])
def test_what_is_no_number_is_not_taken_for_one(http: httpx.Client, number: object):
    budget = {"model": "tiny-llama", "training_file": "file-none", "budget": {"max_steps": number}}

    answer = http.post("/fine_tuning/jobs", json=budget)

    assert envelope(answer) == (400, "invalid_value")
    assert answer.json()["error"]["param"] == "budget.max_steps"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000]
)
def test_a_malformed_body_is_refused(http: httpx.Client, body: bytes):
    answer = http.post(
        "/fine_tuning/jobs", content=body, headers={"Content-Type": "application/json"}
    )

    assert envelope(answer)[0] == 400


def test_a_body_that_is_too_long_is_refused_however_it_comes(http: httpx.Client):
    body = b'{"model": "' + b"x" * (5 << 20) + b'"}'
    json = {"Content-Type": "application/json"}

    declared = http.post("/fine_tuning/jobs", content=body, headers=json)
    chunked = http.post("/fine_tuning/jobs", content=iter([body[:100], body[100:]]), headers=json)

    assert envelope(declared) == envelope(chunked) == (413, "request_too_large")


def test_a_multipart_body_where_none_belongs_is_not_read_without_end(http: httpx.Client):
    kind = {"Content-Type": "multipart/form-data; boundary=x"}

    answer = http.post("/fine_tuning/jobs", content=iter([bytes(5 << 20)]), headers=kind)

    assert envelope(answer) == (413, "request_too_large")


def test_a_form_with_too_many_fields_is_refused(http: httpx.Client):
    fields = {f"field{number}": "x" for number in range(100)}

    answer = http.post("/files", files={"file": ("x", b"x")}, data=fields)

    assert envelope(answer) == (400, "invalid_value")


def test_no_key_and_a_wrong_one_have_the_envelope(api: Api):
    without = httpx.get(f"{api.url}/v1/models")
    wrong = httpx.get(f"{api.url}/v1/models", headers={"Authorization": "Bearer sk-x"})

    assert envelope(without) == envelope(wrong) == (401, "invalid_api_key")


def test_an_outer_path_has_the_envelope_too(api: Api):
    assert envelope(httpx.get(f"{api.url}/elsewhere")) == (404, "not_found")
