"""A trace leads from the request that made a job to the steps of its run."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from app.settings import ApiSettings
from tests.conftest import celery_worker, running_api, wait_until
from tests.factories import jsonl

JOBS = "/fine_tuning/jobs"
TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STEPS = 60


class Collector(ThreadingHTTPServer):
    """Takes spans as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def named(self, name: str) -> list[dict[str, Any]]:
        return [span for span in self.spans if span["name"] == name]


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            (service,) = (
                pair.value.string_value
                for pair in resource.resource.attributes
                if pair.key == "service.name"
            )
            for scope in resource.scope_spans:
                self.server.spans += [shown(span, service) for span in scope.spans]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def shown(span: Any, service: str) -> dict[str, Any]:
    return {
        "service": service,
        "name": span.name,
        "trace_id": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "began": span.start_time_unix_nano,
        "ended": span.end_time_unix_nano,
        "attributes": {
            pair.key: getattr(pair.value, pair.value.WhichOneof("value"))
            for pair in span.attributes
        },
    }


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_steps_of_a_run_hang_under_the_request_that_asked_for_it(
    settings: ApiSettings, collector: Collector, tmp_path: Path
):
    with (
        running_api(settings, tmp_path / "api.log") as api,
        api.http(api.key("traced")) as http,
    ):
        file = {"file": ("t.jsonl", jsonl(24))}
        file_id = http.post("/files", data={"purpose": "fine-tune"}, files=file).json()["id"]
        body = {"model": "tiny-llama", "training_file": file_id, "training": {"max_steps": STEPS}}
        with celery_worker(settings, tmp_path / "worker.log"):
            traceparent = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
            made = http.post(JOBS, json=body, headers=traceparent)
            job_id = made.json()["id"]
            wait_until(
                lambda: http.get(f"{JOBS}/{job_id}").json()["status"] == "succeeded", timeout_s=200
            )

    (request,) = collector.named("POST /v1/fine_tuning/jobs")
    (run,) = collector.named("run")
    (train,) = collector.named("train")
    steps = sorted(collector.named("training steps"), key=lambda span: span["began"])
    assert (request["trace_id"], request["parent"]) == (TRACE_ID, PARENT_ID)
    assert {span["trace_id"] for span in (run, train, *steps)} == {TRACE_ID}
    assert (run["parent"], train["parent"]) == (request["id"], run["id"])
    assert {span["parent"] for span in steps} == {train["id"]}
    assert (request["service"], run["service"]) == ("basin-api", "basin-worker")
    assert run["attributes"]["basin.job_id"] == job_id
    assert request["attributes"]["basin.request_id"] == made.headers["x-request-id"]
    numbers = [
        (span["attributes"]["basin.first_step"], span["attributes"]["basin.last_step"])
        for span in steps
    ]
    assert numbers == [(1, 50), (51, STEPS)]
    assert all(train["began"] <= span["began"] < span["ended"] for span in steps)
    assert not [span for span in collector.spans if "healthz" in span["name"]]
