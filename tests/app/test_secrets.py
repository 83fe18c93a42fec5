"""No secret is in a log, an event, an error, an archive or a command line, whatever goes wrong.

Each secret of the service, of its tenants and of the machine it runs on is a canary: a value that
stands nowhere else. A Basin of its own then does its work, tells others of it, fails at it, and
loses its database; afterwards all that it has written and sent is searched.
"""

import asyncio
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from redis import Redis
from sqlalchemy import text

from app import migrate
from app.db import connected
from app.embedded import Services, run_services
from app.ids import token
from app.keys.service import Scope
from app.settings import ApiSettings
from app.tables import Base
from tests.app.records import run_now
from tests.conftest import Api, celery_worker, running_api
from tests.factories import to_jsonl
from tests.receiver import RECEIVER_HOST, Receiver, receiving
from tests.waiting import within

pytest.importorskip("wandb", reason="the extra `integrations` is not installed")
pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")
pytestmark = pytest.mark.timeout(400)  # a worker, two jobs and the end of everything, once

DATABASE = f"canary-database-{token(12)}"
BROKER = f"canary-broker-{token(12)}"
PEPPER = f"canary-pepper-{token(12)}"
SEALS = [f"canary-seal-{token(12)}", f"canary-seal-before-{token(12)}"]
METRICS = f"canary-metrics-{token(12)}"
TRACES = f"canary-traces-{token(12)}"
COLLECTOR = f"canary-collector-{token(12)}"  # the password in the address of what takes traces
# What stands in the environment of the service or of its machine, by name. A secret that is new
# belongs here: it is given to API and worker, and must then be found nowhere.
ENVIRONMENT = {
    "BASIN_SECRETS_KEY": ",".join(SEALS),
    "BASIN_METRICS_TOKEN": METRICS,
    "OTEL_EXPORTER_OTLP_HEADERS": f"x-collector={TRACES}",
    "PGPASSWORD": f"canary-libpq-{token(12)}",
    "HF_TOKEN": f"canary-hub-{token(12)}",
    "WANDB_API_KEY": f"canary-wandb-{token(12)}",
    "AWS_SECRET_ACCESS_KEY": f"canary-cloud-{token(12)}",
}
# What callers know, but for their keys and webhooks' secrets, which are made on the way.
WRONG_KEY = f"sk-canary{token(30)}"
WANDB_KEY = f"canary-stored-{token(24)}"
REFUSED = [f"canary-{token(4)}", f"canary-url-{token(12)}"]  # a key too short, a URL's password
SECRETS = [DATABASE, BROKER, PEPPER, *SEALS, COLLECTOR, TRACES, WRONG_KEY, WANDB_KEY, *REFUSED]
WANDB = "/organization/integrations/wandb"
# Of all kinds of jobs the one that starts the most: a policy that learns in an environment.
EPISODES = [{"episode": {"seed": seed}} for seed in range(12)]
METHOD = {
    "type": "reinforcement",
    "reinforcement": {
        "environment": {"name": "key-door", "max_turns": 3},
        "group_size": 2,
        "max_completion_tokens": 8,
        "hyperparameters": {"n_epochs": 1, "batch_size": 4},
    },
}
PARTS = (
    "",
    "/events",
    "/logs",
    "/attempts",
    "/metrics",
    "/checkpoints",
    "/rollouts",
    "/report",
    "/stream",
)


@dataclass
class Seen:
    """All that was written, by where: to be searched."""

    secrets: list[str]
    texts: dict[str, str] = field(default_factory=dict)
    commands: set[str] = field(default_factory=set)
    trainers: list[dict[str, str]] = field(default_factory=list)
    rooms: list[dict[str, str]] = field(default_factory=list)
    forwarders: list[dict[str, str]] = field(default_factory=list)
    webhooks: Receiver = field(default_factory=Receiver)
    traces: Receiver = field(default_factory=Receiver)

    def found(self, told: str) -> list[str]:
        """Return the secrets in a text, also where they stand as PostgreSQL shows bytes."""
        return [each for each in self.secrets if each in told or each.encode().hex() in told]


@pytest.fixture(scope="module")
def collector() -> Iterator[Receiver]:
    """What takes traces, after it refused the first of them."""
    with receiving() as found:
        found.statuses = [400, 200]
        yield found


@pytest.fixture(scope="module")
def environment(collector: Receiver) -> Iterator[None]:
    address = collector.url.replace("://", f"://basin:{COLLECTOR}@").removesuffix("/hook")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (ENVIRONMENT | {"OTEL_EXPORTER_OTLP_ENDPOINT": address}).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secrets")


@pytest.fixture(scope="module")
def guarded(
    folder: Path, models_dir: Path, environment: None
) -> Iterator[tuple[ApiSettings, Services]]:
    """Servers of its own, which are asked with passwords."""
    with run_services(folder / "data") as services:
        migrate.upgrade(services.database_url)
        with Redis.from_url(services.redis_url) as redis:
            redis.config_set("requirepass", BROKER)
        settings = ApiSettings(
            database_url=services.database_url.replace("://basin@", f"://basin:{DATABASE}@"),
            redis_url=services.redis_url.replace("unix://", f"unix://:{BROKER}@"),
            key_pepper=PEPPER,
            models_dir=models_dir,
            data_dir=folder / "worker",
            devices="cpu,cpu",  # both jobs at once
            webhook_allow=f"http://{RECEIVER_HOST}/32",
        )
        yield settings, services


@pytest.fixture(scope="module")
def seen(folder: Path, guarded: tuple[ApiSettings, Services], collector: Receiver) -> Seen:
    """Work, failures of every kind, and then the loss of database and broker."""
    settings, services = guarded
    with ExitStack() as stack:
        webhooks = stack.enter_context(receiving())
        api = stack.enter_context(running_api(settings, folder / "api.log"))
        keys = [api.key("acme", scope) for scope in Scope]
        secrets = [*SECRETS, *ENVIRONMENT.values(), *keys]
        seen = Seen(secrets, webhooks=webhooks, traces=collector)
        with celery_worker(settings, folder / "worker.log"), api.http(keys[-1]) as http:
            hand_over(http, seen)
            work(http, settings, seen)
        refusals(api, keys, seen)
        seen.texts["rows"] = asyncio.run(rows(settings))
        for server in services.servers:
            server.stop()
        with api.http(keys[-1]) as http:
            answers = [http.get("/models"), http.get("/files"), http.get(f"{api.url}/readyz")]
        assert [answer.status_code for answer in answers] == [503, 503, 503]
        seen.texts["answers without a database"] = "".join(map(told, answers))
    seen.texts["webhooks"] = "".join(each.body.decode() for each in webhooks.heard)
    seen.texts["traces"] = "".join(each.body.decode(errors="replace") for each in collector.heard)
    for path in folder.rglob("*"):
        if path.is_file() and "postgres" not in path.relative_to(folder).parts:
            seen.texts[str(path)] = path.read_bytes().decode(errors="replace")
    return seen


def hand_over(http: httpx.Client, seen: Seen) -> None:
    """Store what a tenant trusts the service with: a key, and a webhook with a second secret."""
    seen.texts["the key that is stored"] = told(http.put(WANDB, json={"api_key": WANDB_KEY}))
    ends = [f"fine_tuning.job.{end}" for end in ("succeeded", "failed")]
    asked = {"name": "ours", "url": seen.webhooks.url, "event_types": ends}
    made = http.post("/webhook_endpoints", json=asked).json()
    path = f"/webhook_endpoints/{made['id']}"
    rotation = {"keep_old_secret_active_for_24_hours": True}
    rotated = http.post(f"{path}/rotate_secret", json=rotation).json()
    for each in (made, rotated):
        seen.secrets.append(each["signing_secret"].removeprefix("whsec_"))
    seen.texts["a try of the webhook"] = told(http.post(f"{path}/test"))


def work(http: httpx.Client, settings: ApiSettings, seen: Seen) -> None:
    """Train one job and fail at another, and tell of both; look at every process meanwhile."""
    upload = {"file": ("train.jsonl", to_jsonl(EPISODES))}
    file = http.post("/files", data={"purpose": "fine-tune"}, files=upload).json()
    asked = {"model": "tiny-llama", "training_file": file["id"], "method": METHOD}
    short = {"integrations": [{"type": "wandb", "wandb": {"project": "tuning"}}]}
    jobs = [
        http.post("/fine_tuning/jobs", json=asked | more).json()["id"]
        for more in (short, {"model": "broken-llama"})
    ]

    def over() -> bool:
        look_at_processes(seen)
        left = "SELECT (SELECT count(*) FROM forwards WHERE state = 'pending')"
        left += " + (SELECT count(*) FROM webhook_deliveries WHERE state = 'pending')"
        ended = {each["status"] for each in http.get("/fine_tuning/jobs").json()["data"]}
        return not {"queued", "running"} & ended and run_now(settings, left) == 0

    assert within(300, over)
    assert [http.get(f"/fine_tuning/jobs/{job}").json()["status"] for job in jobs] == [
        "succeeded",
        "failed",
    ]
    for job in jobs:
        for part in PARTS:
            seen.texts[f"{job}{part}"] = told(http.get(f"/fine_tuning/jobs/{job}{part}"))
    archive = http.get(f"/fine_tuning/jobs/{jobs[0]}/adapter").content
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file_of = tar.extractfile(member)
            assert file_of is not None
            seen.texts[f"adapter/{member.name}"] = file_of.read().decode(errors="replace")


def look_at_processes(seen: Seen) -> None:
    """What anybody on the machine reads of a command line; and what a run is given."""
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            seen.commands.add(command)
            environment = process.environ()  # empty, if it ended just now
            if environment and "worker.trainer" in command:
                seen.trainers.append(environment)
            if environment and "worker.environments.host" in command:
                seen.rooms.append(environment)
            if environment and "app.integrations.to_" in command:
                seen.forwarders.append(environment)
        except psutil.Error:
            continue


def refusals(api: Api, keys: list[str], seen: Seen) -> None:
    """Every kind of refusal there is, with keys in reach."""
    reader, writer, admin, _ = keys
    body = {"Content-Type": "application/json"}
    hook = {"url": f"https://me:{REFUSED[1]}@example.com", "event_types": []}
    asked = [
        (WRONG_KEY, "GET", "/models", b""),
        (reader + "x", "GET", "/models", b""),
        (reader, "DELETE", "/files/file-none", b""),
        (writer, "GET", "/organization/keys", b""),
        (writer, "GET", "/fine_tuning/jobs/none", b""),
        (writer, "PUT", "/files", b""),
        (writer, "POST", "/fine_tuning/jobs", b"{"),
        (writer, "POST", "/fine_tuning/jobs", b"[" * 10_000),
        (writer, "POST", "/fine_tuning/jobs", bytes(5 << 20)),
        (writer, "POST", "/files", b"no form"),
        (writer, "GET", "/files?after=%00", b""),
        (writer, "GET", f"{api.url}/metrics", b""),
        (METRICS, "GET", f"{api.url}/metrics", b""),
        (admin, "PUT", WANDB, json.dumps({"api_key": REFUSED[0]}).encode()),
        (admin, "POST", "/webhook_endpoints", json.dumps(hook).encode()),
        (admin, "GET", WANDB, b""),
        (admin, "GET", "/webhook_endpoints", b""),
        (admin, "GET", "/organization/audit_logs", b""),
        (admin, "GET", "/organization/keys", b""),
    ]
    statuses = set()
    for key, method, path, content in asked:
        with api.http(key) as http:
            answer = http.request(method, path, content=content, headers=body)
        statuses.add(answer.status_code)
        seen.texts[f"{method} {path} {len(content)} {answer.status_code}"] = told(answer)
    assert {200, 400, 401, 403, 404, 405, 413} <= statuses


async def rows(settings: ApiSettings) -> str:
    """Every row there is, as text."""
    found = []
    async with connected(settings.database_url) as db, db.transaction() as tx:
        for table in Base.metadata.tables.values():
            found += list(
                await tx.scalars(text(f"SELECT row_to_json(t)::text FROM {table.name} t"))
            )
    return "\n".join(found)


def told(answer: httpx.Response) -> str:
    return answer.text + str(dict(answer.headers))


def test_no_secret_is_in_what_was_written(seen: Seen):
    leaks = {where: seen.found(told) for where, told in seen.texts.items()}

    assert {where: found for where, found in leaks.items() if found} == {}


def test_it_was_really_looked(seen: Seen):
    """Logs, events, rows, an archive and what was sent, each with what it is known to hold."""
    logs = "".join(told for where, told in seen.texts.items() if where.endswith(".log"))

    for event in ("job.claimed", "database.unreachable", "request.answered", "metrics.forwarded"):
        assert event in logs
    assert "Failed to export" in logs
    assert any(where.startswith("adapter/") for where in seen.texts)
    assert any(
        "step_advantage" in told for where, told in seen.texts.items() if "/rollouts" in where
    )
    assert "Created fine-tuning job" in seen.texts["rows"]
    for change in ("integration.stored", "webhook.rotated"):
        assert change in seen.texts["rows"]
    assert "basin_jobs" in "".join(seen.texts.values())
    assert "fine_tuning.job.failed" in seen.texts["webhooks"] and "train" in seen.texts["traces"]
    assert len(seen.texts["rows"]) > 10_000 and len(seen.secrets) == len(set(seen.secrets)) >= 20


def test_what_was_handed_over_was_used(seen: Seen):
    told, sent = seen.webhooks.heard[-1], [each.headers for each in seen.traces.heard]

    assert told.headers["webhook-signature"].count("v1,") == 2
    assert {headers["x-collector"] for headers in sent} == {TRACES}
    assert {"authorization"} <= set(sent[0])
    assert [each["WANDB_API_KEY"] for each in seen.forwarders][-1] == WANDB_KEY


def test_what_sends_metrics_is_given_the_one_key_that_it_needs(seen: Seen):
    assert {tuple(seen.found(str(each))) for each in seen.forwarders} == {(WANDB_KEY,)}


def test_no_secret_is_on_a_command_line(seen: Seen):
    commands = "\n".join(seen.commands)

    assert "app.serve" in commands and "worker.trainer" in commands and "celery" in commands
    assert not seen.found(commands)


def test_a_trainer_and_an_environment_are_given_no_secret(seen: Seen):
    assert seen.trainers and seen.rooms
    assert not seen.found(str([*seen.trainers, *seen.rooms]))


def test_a_setting_that_is_wrong_is_named_and_not_shown(
    guarded: tuple[ApiSettings, Services], seen: Seen
):
    given = {
        "BASIN_DATABASE_URL": guarded[0].database_url,
        "BASIN_REDIS_URL": guarded[0].redis_url,
        "BASIN_KEY_PEPPER": "canary-short",
        "BASIN_STREAMS": "canary-number",
    }

    done = subprocess.run(
        [sys.executable, "-m", "app.serve"], env=os.environ | given, capture_output=True, text=True
    )

    assert done.returncode == 1 and "BASIN_STREAMS: Input should be a valid integer" in done.stderr
    assert "BASIN_KEY_PEPPER" in done.stderr and "Traceback" not in done.stderr
    assert not seen.found(done.stderr) and "canary" not in done.stderr
