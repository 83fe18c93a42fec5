"""What the API logs: one JSON object a line, with the ids of request and job."""

import json
from pathlib import Path

import pytest

from app.settings import ApiSettings
from tests.conftest import running_api


def test_every_line_is_json_and_an_answer_names_its_request_and_job(
    settings: ApiSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BASIN_LOG_FORMAT", "json")
    log = tmp_path / "api.log"
    with running_api(settings, log) as api, api.http(api.key("acme")) as http:
        answer = http.get("/fine_tuning/jobs/ftjob-nobody")
        http.get(f"{api.url}/healthz")

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    answered = [line for line in lines if line["event"] == "request.answered"]
    assert len(answered) == 1
    found = answered[0]
    assert found["request_id"] == answer.headers["x-request-id"]
    assert found["job_id"] == "ftjob-nobody"
    assert (found["method"], found["status"]) == ("GET", 404)
    assert found["route"] == "/v1/fine_tuning/jobs/{job_id}"
    assert any("Uvicorn running" in line["event"] for line in lines)
