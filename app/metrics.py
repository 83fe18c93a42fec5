"""/metrics for Prometheus: what this process does, and what there is in the database."""

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Iterable, Iterator, Mapping

import structlog
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from app import census
from app.census import Census
from app.db import Database
from app.errors import InsufficientPermissions, InvalidApiKey
from app.jobs.stream import Live
from app.web import Config

log = structlog.get_logger()
router = APIRouter(tags=["health"])

FRESH_S = 5.0  # however many scrape, the database is asked so often
CENSUS_TIMEOUT_S = 5.0
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Metrics:
    """What one API process shows; the counts of the database are every process's the same."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._latency = Histogram(
            "basin_http_request_duration_seconds",
            "From a request's arrival to the beginning of its answer.",
            ["method", "route", "status"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._counted = Counted()
        self.registry.register(self._counted)
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")

    def answered(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Note an answer. `route` is a template: a path would make a series of each id."""
        known = method if method in METHODS else "OTHER"
        self._latency.labels(known, route, str(status)).observe(seconds)

    async def page(self, db: Database, live: Live) -> bytes:
        """Return all there is to show; without the database's part while it is away."""
        async with self._looking:
            if time.monotonic() - self._looked_at > FRESH_S:
                self._counted.found = await _count(db)
                self._looked_at = time.monotonic()
        self._counted.watchers = live.watchers
        return generate_latest(self.registry)


class Counted(Collector):
    """Shows the last census as metrics."""

    found: Census | None = None
    watchers = 0

    def collect(self) -> Iterable[Metric]:
        """Yield each family, also where it is empty: its name is then known."""
        up = float(self.found is not None)
        yield _gauge("basin_database_up", "Whether the database answered.", up)
        yield _gauge("basin_stream_watchers", "Open streams of this process.", self.watchers)
        if self.found is not None:
            yield from _of_jobs(self.found)
            yield from _of_workers(self.found)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def show_metrics(request: Request, settings: Config) -> Response:
    """Show metrics to Prometheus: with BASIN_METRICS_TOKEN, or from this machine if none is set."""
    token = settings.metrics_token
    _admit(request, token.get_secret_value() if token else None)
    state = request.app.state
    metrics: Metrics = state.metrics
    return Response(await metrics.page(state.db, state.live), media_type=CONTENT_TYPE_LATEST)


def _admit(request: Request, token: str | None) -> None:
    """Let a scraper in.

    Raises:
        InvalidApiKey: the token is another.
        InsufficientPermissions: there is none, and it asks from another machine.
    """
    if token is not None:
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(sent.encode(), token.encode()):
            raise InvalidApiKey("Send `Authorization: Bearer …` with BASIN_METRICS_TOKEN.")
        return
    forwarded = {"x-forwarded-for", "forwarded", "x-real-ip"} & set(request.headers)
    if forwarded or not _is_local(request.client.host if request.client else ""):
        raise InsufficientPermissions(
            "Metrics are shown to this machine alone; set BASIN_METRICS_TOKEN to read them"
            " from elsewhere."
        )


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _count(db: Database) -> Census | None:
    try:
        async with asyncio.timeout(CENSUS_TIMEOUT_S), db.transaction() as tx:
            return await census.take(tx)
    except (SQLAlchemyError, TimeoutError) as error:
        log.warning("metrics.incomplete", error=str(error))
        return None


def _of_jobs(found: Census) -> Iterator[Metric]:
    yield _gauges("basin_jobs", "Jobs by status.", "status", found.jobs)
    yield _gauge("basin_queue_depth", "Jobs that wait.", found.jobs["queued"])
    yield _gauge(
        "basin_queue_oldest_seconds", "How long the longest wait is so far.", found.oldest_s
    )
    yield _counters("basin_run_failures", "Jobs that failed, by code.", "code", found.failures)
    yield _counters("basin_attempts", "Attempts that ended, by outcome.", "outcome", found.attempts)
    counts = {state: count for state, (count, _) in found.blobs.items()}
    sizes = {state: size for state, (_, size) in found.blobs.items()}
    yield _gauges("basin_blobs", "Stored blobs by state.", "state", counts)
    yield _gauges("basin_blob_bytes", "Bytes in stored blobs by state.", "state", sizes)


def _of_workers(found: Census) -> Iterator[Metric]:
    devices = {node.id: len(node.devices) for node in found.workers}
    free = {node.id: node.free for node in found.workers}
    renewals = {node.id: node.telemetry.get("lease_renewals", 0) for node in found.workers}
    failures = {node.id: node.telemetry.get("lease_failures", 0) for node in found.workers}
    yield _gauge("basin_workers", "Workers heard of in the last 30 s.", len(devices))
    yield _gauges("basin_worker_devices", "Devices of a worker.", "worker", devices)
    yield _gauges("basin_worker_devices_free", "Those that run nothing.", "worker", free)
    yield _counters(
        "basin_lease_renewals", "Holds on jobs that a worker renewed.", "worker", renewals
    )
    yield _counters(
        "basin_lease_failures", "Renewals that the database did not take.", "worker", failures
    )
    labels = ["worker", "device"]
    used = GaugeMetricFamily(
        "basin_gpu_memory_used_bytes", "Memory in use on a GPU.", labels=labels
    )
    total = GaugeMetricFamily("basin_gpu_memory_total_bytes", "Memory of a GPU.", labels=labels)
    for node in found.workers:
        for gpu in node.telemetry.get("gpus", []):
            used.add_metric([node.id, gpu["device"]], gpu["used_bytes"])
            total.add_metric([node.id, gpu["device"]], gpu["total_bytes"])
    yield used
    yield total


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)


def _gauges(name: str, words: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counters(name: str, words: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, words, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
