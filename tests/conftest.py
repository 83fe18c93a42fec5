"""A real PostgreSQL, a real Redis and a real API for every test that asks for them."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from sqlalchemy import update

from app import migrate
from app.db import Database, connected
from app.embedded import Services, run_services
from app.ids import token
from app.jobs.states import TERMINAL, JobStatus
from app.keys import service as keys
from app.keys.service import Scope
from app.settings import ApiSettings, inherited_environment
from app.tables import Job
from app.up import LEAN_MALLOC
from tests.factories import PEPPER, jsonl, make_bert_folder, make_model_folder, make_t5_folder
from tests.receiver import RECEIVER_HOST
from tests.waiting import answers, free_port, wait_until

SHARED = Path(__file__).resolve().parents[2] / "shared"
MAX_FILE_BYTES = 3 << 20


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs something that is not there, with the reason; never in CI."""
    if os.environ.get("CI") == "true":
        return
    lacking = {"shared": f"{SHARED} is not there"} if not SHARED.is_dir() else {}
    if CHROMIUM is None:
        lacking["browser"] = "there is no Chromium: apt-get install chromium"
    for item in items:
        for marker, reason in lacking.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def service_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("services") / "data"


@pytest.fixture(scope="session")
def services(service_data: Path) -> Iterator[Services]:
    with run_services(service_data) as running:
        migrate.upgrade(running.database_url)
        yield running


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_model_folder(folder / "tiny-llama")
    make_t5_folder(folder / "tiny-t5")
    make_bert_folder(folder / "tiny-bert")
    (folder / "broken-llama").mkdir()
    (folder / "broken-llama" / "config.json").write_text('{"model_type": "llama"}')
    if SHARED.is_dir():
        (folder / "stories260K").symlink_to(SHARED / "models" / "stories260K")
    return folder


@pytest.fixture(scope="session")
def settings(
    services: Services, models_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> ApiSettings:
    return ApiSettings(
        database_url=services.database_url,
        redis_url=services.redis_url,
        key_pepper=PEPPER,
        models_dir=models_dir,
        data_dir=tmp_path_factory.mktemp("worker"),
        max_file_bytes=MAX_FILE_BYTES,
        requests_per_minute=60_000,  # a test never waits
        devices="cpu",
        webhook_allow=f"http://{RECEIVER_HOST}/32",
    )


def environment(settings: ApiSettings) -> dict[str, str]:
    return inherited_environment() | {
        "BASIN_DATABASE_URL": settings.database_url,
        "BASIN_REDIS_URL": settings.redis_url,
        "BASIN_KEY_PEPPER": settings.key_pepper.get_secret_value(),
        "BASIN_MODELS_DIR": str(settings.models_dir),
        "BASIN_DATA_DIR": str(settings.data_dir),
        "BASIN_MAX_FILE_BYTES": str(settings.max_file_bytes),
        "BASIN_REQUESTS_PER_MINUTE": str(settings.requests_per_minute),
        "BASIN_CLIENT_TIMEOUT_S": str(settings.client_timeout_s),
        "BASIN_MAX_CONNECTIONS": str(settings.max_connections),
        "BASIN_STREAMS_PER_CALLER": str(settings.streams_per_caller),
        "BASIN_STREAMS": str(settings.streams),
        "BASIN_WATCHERS_PER_CALLER": str(settings.watchers_per_caller),
        "BASIN_WATCHERS": str(settings.watchers),
        "BASIN_DEVICES": settings.devices,
        "BASIN_WEBHOOK_ALLOW": settings.webhook_allow,
        **(
            {"BASIN_MLFLOW_TRACKING_URI": mlflow}
            if (mlflow := settings.mlflow_tracking_uri)
            else {}
        ),
        "WANDB_MODE": "offline",  # no test reaches it
        "BASIN_PREVIEW": settings.preview,
        "BASIN_PREVIEW_MAX_TOKENS": str(settings.preview_max_tokens),
        "BASIN_PREVIEW_TIMEOUT_S": str(settings.preview_timeout_s),
        "BASIN_PREVIEW_THREADS": str(settings.preview_threads),
    }


@dataclass(frozen=True)
class Api:
    """A running server and the keys to it."""

    url: str
    settings: ApiSettings
    pid: int

    def key(self, organization: str, scope: Scope = Scope.WRITE) -> str:
        pepper = self.settings.key_pepper.get_secret_value()

        async def make() -> str:
            async with connected(self.settings.database_url) as db, db.transaction() as tx:
                return await keys.create(
                    tx, organization=organization, name="test", pepper=pepper, scope=scope
                )

        return asyncio.run(make())

    def http(self, key: str) -> httpx.Client:
        return httpx.Client(
            base_url=f"{self.url}/v1", headers={"Authorization": f"Bearer {key}"}, timeout=60
        )

    def openai(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="session")
def api(settings: ApiSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(settings, tmp_path_factory.mktemp("api") / "api.log") as found:
        yield found


@contextmanager
def running_api(settings: ApiSettings, log: Path) -> Iterator[Api]:
    """A real server; its log is where it was told."""
    port = free_port()
    command = [sys.executable, "-m", "app.serve"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env=environment(settings) | LEAN_MALLOC,
            stdout=output,
            stderr=output,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(url), timeout_s=90)
        yield Api(url, settings, process.pid)
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def worker(settings: ApiSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real Celery worker with nothing to do yet; yields its log."""
    with celery_worker(settings, tmp_path_factory.mktemp("celery") / "worker.log") as log:
        yield log


@contextmanager
def celery_worker(settings: ApiSettings, log: Path) -> Iterator[Path]:
    """Start a worker once no job waits any more, and ask it to stop at the end."""
    asyncio.run(_end_all_jobs(settings))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker"],
            env=environment(settings),
            stdout=output,
            stderr=output,
        )
    try:
        yield log
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def organization() -> str:
    return f"acme-{token(6)}"


@pytest.fixture(scope="session")
def http(api: Api, organization: str) -> Iterator[httpx.Client]:
    with api.http(api.key(organization)) as client:
        yield client


@pytest.fixture(scope="session")
def stranger(api: Api) -> Iterator[httpx.Client]:
    """Somebody with a good key of another organization."""
    with api.http(api.key(f"stranger-{token(6)}")) as client:
        yield client


@pytest.fixture(scope="session")
def client(api: Api, organization: str) -> Iterator[openai.OpenAI]:
    with api.openai(api.key(organization)) as openai_client:
        yield openai_client


@pytest.fixture
def training_file(client: openai.OpenAI) -> str:
    return client.files.create(file=("train.jsonl", jsonl(20)), purpose="fine-tune").id


@pytest.fixture
async def db(settings: ApiSettings) -> AsyncIterator[Database]:
    async with connected(settings.database_url) as database:
        yield database


@pytest.fixture
async def empty_queue(db: Database) -> None:
    """End every job of the tests before, so that the next claim takes ours."""
    await _cancel_all(db)


async def _end_all_jobs(settings: ApiSettings) -> None:
    async with connected(settings.database_url) as db:
        await _cancel_all(db)


async def _cancel_all(db: Database) -> None:
    async with db.transaction() as tx:
        live = Job.status.not_in(TERMINAL)
        await tx.execute(update(Job).where(live).values(status=JobStatus.CANCELLED))
