"""One cluster and one undisturbed run for all of a module's disturbances."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app import migrate
from app.embedded import Services
from app.ids import token
from tests.app.conftest import administer, url_of
from tests.chaos.cluster import Cluster, running
from tests.chaos.invariants import BODY


@pytest.fixture(scope="module")
def cluster(models_dir: Path) -> Iterator[Cluster]:
    with running(models_dir) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> str:
    """The hash of the adapter's weights of a run that was left alone."""
    worker = cluster.start_worker()
    job_id = cluster.submit(**BODY)
    assert cluster.wait(job_id)["status"] == "succeeded"
    cluster.kill_worker(worker)
    return cluster.weights(job_id)


@pytest.fixture
def no_workers_between(cluster: Cluster) -> Iterator[None]:
    """Every test starts the workers it needs."""
    yield
    for worker in cluster.workers:
        if worker.process.poll() is None:
            cluster.kill_worker(worker)
    cluster.sql("UPDATE jobs SET status = 'cancelled' WHERE status IN ('queued', 'running')")
    cluster.sql("UPDATE attempts SET ended_at = now() WHERE ended_at IS NULL")


@pytest.fixture(scope="module")
def own_url(services: Services) -> Iterator[str]:
    """A database that nobody else writes to."""
    name = f"states-{token(8)}"
    administer(services, "CREATE DATABASE {}", name)
    migrate.upgrade(url_of(services, name))
    yield url_of(services, name)
    administer(services, "DROP DATABASE {} WITH (FORCE)", name)
