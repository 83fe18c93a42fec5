"""/metrics: what Prometheus reads, who may, and what the dashboard asks for."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.db import Database
from app.jobs.states import JobStatus
from app.jobs.stream import Live
from app.main import create_app
from app.metrics import Metrics
from app.settings import ApiSettings
from app.tables import Attempt, Worker
from tests.app import records
from tests.app.records import make_file, make_job, make_organization
from tests.conftest import Api

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana-dashboard.json"
TOKEN = "a token for tests only"


@asynccontextmanager
async def served(
    settings: ApiSettings, *, peer: str = "127.0.0.1", **changed: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """An API with other settings, and a client on another machine."""
    app = create_app(settings.model_copy(update=changed))
    transport = httpx.ASGITransport(app, client=(peer, 1))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://basin") as client,
    ):
        yield client


def families(page: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(page)}


def values(page: str, name: str, label: str) -> dict[str, float]:
    """The values of a metric by one of its labels."""
    found = [
        sample for family in families(page).values() for sample in family.samples
        if sample.name == name
    ]  # fmt: skip
    return {sample.labels.get(label, ""): sample.value for sample in found}


def value(page: str, name: str) -> float:
    return values(page, name, "")[""]


async def test_what_there_is_in_the_database_is_counted(
    settings: ApiSettings, own: Database, own_url: str
):
    organization_id = await make_organization(own)
    file = await make_file(own, organization_id, b"x" * 1000)
    make = [own, organization_id, file.id]
    await make_job(*make, JobStatus.QUEUED)
    await records.run(own, "UPDATE jobs SET queued_at = now() - interval '90 seconds'")
    await make_job(*make, JobStatus.QUEUED)
    for code in ("diverged", "diverged", "out_of_memory"):
        failed = await make_job(*make, JobStatus.FAILED, error_code=code)
    gpus = [{"device": "0", "used_bytes": 2 << 30, "total_bytes": 80 << 30}]
    told = {"lease_renewals": 7, "lease_failures": 1, "gpus": gpus}
    async with own.transaction() as tx:
        tx.add(Attempt(job_id=failed, number=1, worker="w", outcome="killed"))
        tx.add(Worker(id="w", hostname="w", devices={"all": ["0", "1"]}, telemetry=told))

    async with served(settings, database_url=own_url) as http:
        page = (await http.get("/metrics")).text

    jobs = values(page, "basin_jobs", "status")
    assert (jobs["queued"], jobs["failed"], jobs["succeeded"]) == (2, 3, 0)
    assert value(page, "basin_queue_depth") == 2
    assert 90 <= value(page, "basin_queue_oldest_seconds") < 600
    failures = values(page, "basin_run_failures_total", "code")
    assert failures == {"diverged": 2, "out_of_memory": 1}
    assert values(page, "basin_attempts_total", "outcome") == {"killed": 1}
    assert values(page, "basin_blob_bytes", "state") == {"ready": 1000}
    assert values(page, "basin_lease_renewals_total", "worker") == {"w": 7}
    assert values(page, "basin_lease_failures_total", "worker") == {"w": 1}
    assert values(page, "basin_gpu_memory_used_bytes", "device") == {"0": 2 << 30}
    assert values(page, "basin_worker_devices_free", "worker") == {"w": 2}
    assert value(page, "basin_database_up") == 1


async def test_a_request_is_timed_by_its_route_and_never_by_its_path(
    api: Api, settings: ApiSettings
):
    key = {"Authorization": f"Bearer {await asyncio.to_thread(api.key, 'acme')}"}
    async with served(settings) as http:
        for job_id in ("ftjob-one", "ftjob-two"):
            await http.get(f"/v1/fine_tuning/jobs/{job_id}", headers=key)
        await http.get("/nowhere/ftjob-three")
        await http.request("BREW", "/v1/models")
        page = (await http.get("/metrics")).text

    counts = {
        tuple(sample.labels[name] for name in ("method", "route", "status")): sample.value
        for sample in families(page)["basin_http_request_duration_seconds"].samples
        if sample.name.endswith("_count")
    }
    assert counts["GET", "/v1/fine_tuning/jobs/{job_id}", "404"] == 2
    assert counts["GET", "unmatched", "404"] == 1
    assert {method for method, _, _ in counts} == {"GET", "OTHER"}
    assert "ftjob" not in page and "BREW" not in page


async def test_from_elsewhere_metrics_are_read_with_the_token_alone(settings: ApiSettings):
    async with served(settings, peer="10.0.0.9", metrics_token=token()) as http:
        without = await http.get("/metrics")
        wrong = await http.get("/metrics", headers={"Authorization": "Bearer wrong"})
        right = await http.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})

    assert (without.status_code, wrong.status_code, right.status_code) == (401, 401, 200)


async def test_without_a_token_only_this_machine_reads_them(settings: ApiSettings):
    async with served(settings, peer="10.0.0.9") as http:
        far = await http.get("/metrics")
    async with served(settings, peer="::1") as http:
        near = await http.get("/metrics")
        proxied = await http.get("/metrics", headers={"X-Forwarded-For": "10.0.0.9"})

    assert far.status_code == proxied.status_code == 403
    assert "BASIN_METRICS_TOKEN" in far.json()["error"]["message"]
    assert near.status_code == 200


def token() -> Any:
    return ApiSettings.model_fields["metrics_token"].annotation.__args__[0](TOKEN)


async def test_a_database_that_is_away_is_shown_as_away(settings: ApiSettings):
    async with served(settings, database_url="postgresql+psycopg://x@127.0.0.1:1/x") as http:
        answer = await http.get("/metrics")

    assert answer.status_code == 200
    assert value(answer.text, "basin_database_up") == 0
    assert value(answer.text, "process_resident_memory_bytes") > 0


class Counting(Database):
    """Counts its transactions."""

    begun = 0

    def transaction(self) -> Any:
        self.begun += 1
        return super().transaction()


async def test_however_many_scrape_the_database_is_asked_once(settings: ApiSettings):
    db, metrics = Counting(settings.database_url), Metrics()

    await asyncio.gather(*(metrics.page(db, Live(db)) for _ in range(20)))

    assert db.begun == 1
    await db.close()


async def test_the_dashboard_asks_for_metrics_that_there_are(settings: ApiSettings):
    async with served(settings) as http:
        await http.get("/nowhere")
        page = (await http.get("/metrics")).text
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))
    known = {
        name + suffix
        for name, kind in types.items()
        for suffix in (("_bucket", "_count", "_sum") if kind == "histogram" else ("",))
    }

    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    asked = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"\b(?:basin|process)_\w+", target["expr"])
    }

    assert asked and asked <= known
    ours = {name for name in types if name.startswith("basin_") and types[name] != "histogram"}
    assert {name for name in ours - asked if not name.endswith("_created")} == set()


def test_the_dashboard_is_one_that_grafana_imports():
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]

    assert dashboard["schemaVersion"] >= 36 and dashboard["uid"] and dashboard["title"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text()))
    assert used <= variables
    squares = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(squares)) == len(squares) and max(x for x, _ in squares) == 23
