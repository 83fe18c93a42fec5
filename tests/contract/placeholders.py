"""The rows behind the ids that the openai package's tests call, put back before each request.

Nothing of the service is switched off: a wrapper around the real application writes real rows of a
tenant of their own, so that a file that one test deleted is there for the next.

One of their examples asks for what no service can say yes to, and is changed on the way in: a file
whose md5 is "md5".
"""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.db import Database
from app.jobs import defaults
from app.jobs.defaults import Facts
from app.jobs.schemas import CreateJob
from app.jobs.spec import DataSpec
from app.jobs.states import JobStatus
from app.keys.service import ID_LENGTH, digest
from app.main import app_from_env as real_app
from app.tables import (
    ApiKey,
    Base,
    Blob,
    BlobChunk,
    Checkpoint,
    CheckpointPermission,
    File,
    IntegrationKey,
    Job,
    JobEvent,
    Organization,
    Upload,
    UploadPart,
)
from app.vault import Vault
from tests.factories import PEPPER, jsonl

ORGANIZATION = "acemeco"
MODELS = ("gpt-4o-mini", "gpt-6-astra")
KEY = "My API Key"  # what they send everywhere, also where OpenAI asks for an admin's
PROJECTS = ("string", "project_id")
PERMISSION = "cp_zc4Q7MP6XxulcVzj4MZdwsAB"
UPLOAD, PART = "upload_abc123", "string"
JOB = "ft-AF1WoRqd3aJAHsqc9NY7iL8F"
TUNED = "ft:gpt-4o-mini:acemeco:suffix:abc123"
SHARED = "ft:gpt-4o-mini-2024-07-18:org:weather:B7R9VjQd"
CURSOR = "after"  # where their pages start: a row of each list has this id
ROWS = 10
PLACEHOLDER = b"Example data"


def make_model(folder: Path) -> None:
    """Write what the API reads of a base model."""
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))


async def put_back(tx: AsyncSession) -> None:
    """Make the database hold these rows and no others."""
    for table in reversed(Base.metadata.sorted_tables):
        await tx.execute(delete(table))
    for row in rows():
        tx.add(row)
        await tx.flush()


def rows() -> list[Base]:
    """Return all of them, owners first."""
    training = [blob("blob-training", jsonl(ROWS)), *files()]
    return [
        *organizations(),
        *flatten(training),
        *jobs(),
        *of_the_running_job(),
        *permissions(),
        *upload(),
    ]


def organizations() -> list[Base]:
    key = ApiKey(
        id=KEY[3 : 3 + ID_LENGTH],
        organization_id=ORGANIZATION,
        name=KEY,
        scope="admin",
        digest=digest(KEY[3 + ID_LENGTH :], PEPPER),
    )
    # Their jobs ask for metrics to be sent to Weights & Biases, for which a key is stored.
    sealed = Vault([PEPPER]).seal(PLACEHOLDER.decode())
    wandb = IntegrationKey(
        organization_id=ORGANIZATION, type="wandb", secret=sealed, last4=PLACEHOLDER.decode()[-4:]
    )
    names = (ORGANIZATION, *PROJECTS)
    return [*(Organization(id=name, name=name) for name in names), key, wandb]


def blob(blob_id: str, data: bytes) -> list[Base]:
    sha256 = hashlib.sha256(data).hexdigest()
    about = {"state": "ready", "size": len(data), "sha256": sha256}
    return [
        Blob(id=blob_id, organization_id=ORGANIZATION, **about),
        BlobChunk(blob_id=blob_id, seq=0, data=data),
    ]


def files() -> list[Base]:
    data = jsonl(ROWS)
    return [
        File(
            id=file_id,
            organization_id=ORGANIZATION,
            blob_id="blob-training",
            filename="train.jsonl",
            purpose="fine-tune",
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            rows=ROWS,
            row_format="chat",
        )
        for file_id in ("file-abc123", "file_id", CURSOR)
    ]


def jobs() -> list[Base]:
    """One that runs, so that it can be cancelled and paused, and two that left a model."""
    soon = datetime.now(UTC) + timedelta(minutes=1)
    running = job(JOB, JobStatus.RUNNING, attempt=1, lease_until=soon, worker="nobody")
    done = [
        job(
            job_id,
            JobStatus.SUCCEEDED,
            fine_tuned_model=model,
            adapter_blob_id=f"blob-{job_id}",
            finished_at=datetime.now(UTC),
        )
        for job_id, model in ((CURSOR, TUNED), ("weather", SHARED))
    ]
    adapters = [blob(f"blob-{job_id}", PLACEHOLDER) for job_id in (CURSOR, "weather")]
    return [*flatten(adapters), running, *done]


def of_the_running_job() -> list[Base]:
    """An event, and a checkpoint whose model has the name of its job, as their tests ask."""
    event = JobEvent(id=CURSOR, job_id=JOB, level="info", message="Hello", type="message", data={})
    checkpoint = Checkpoint(
        id=CURSOR, job_id=JOB, step=1, metrics={"step": 1}, model=JOB, blob_id="blob-checkpoint"
    )
    return [event, *blob("blob-checkpoint", PLACEHOLDER), checkpoint]


def permissions() -> list[Base]:
    """One to delete, and one to start a page after."""
    return [
        CheckpointPermission(
            id=permission_id, organization_id=ORGANIZATION, model=model, project_id="project_id"
        )
        for permission_id, model in ((PERMISSION, SHARED), (CURSOR, JOB))
    ]


def upload() -> list[Base]:
    """One that has all its bytes."""
    soon = datetime.now(UTC) + timedelta(minutes=1)
    size = {"size_bytes": len(PLACEHOLDER)}
    pending = Upload(
        id=UPLOAD,
        organization_id=ORGANIZATION,
        filename="filename",
        mime_type="mime_type",
        purpose="assistants",
        expires_at=soon,
        **size,
    )
    part = UploadPart(id=PART, upload_id=UPLOAD, blob_id="blob-part", **size)
    return [pending, *blob("blob-part", PLACEHOLDER), part]


def job(job_id: str, status: JobStatus, **values: Any) -> Job:
    body = CreateJob(model=MODELS[0], training_file="file-abc123")
    data = DataSpec(train_sha256="", train_rows=ROWS, valid_sha256=None, valid_rows=0)
    facts = Facts(job_id=job_id, context_length=64, task="causal", data=data)
    spec = defaults.resolve(body, facts, seed=42)
    shown = {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.0}
    return Job(
        id=job_id,
        organization_id=ORGANIZATION,
        status=status,
        model=body.model,
        training_file_id=body.training_file,
        method={"type": "supervised", "supervised": {"hyperparameters": shown}},
        hyperparameters=shown,
        user_metadata={"foo": "string"},
        spec=spec.model_dump(mode="json"),
        total_steps=spec.total_steps,
        **values,
    )


def flatten(groups: list[Any]) -> list[Base]:
    return [row for group in groups for row in (group if isinstance(group, list) else [group])]


class PutBack:
    """The application, with the rows put back before each request."""

    def __init__(self, app: ASGIApp, database: Database) -> None:
        self._app = app
        self._database = database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            async with self._database.transaction() as tx:
                await put_back(tx)
            if scope["path"] == f"/v1/uploads/{UPLOAD}/complete":
                receive = adapted(receive)
        await self._app(scope, receive, send)


def adapted(receive: Receive) -> Receive:
    """Put an md5 that is one for "md5"."""

    async def changed() -> Message:
        message = await receive()
        asked = json.loads(message.get("body") or b"{}")
        if asked.get("md5") == "md5":
            asked["md5"] = hashlib.md5(PLACEHOLDER).hexdigest()
        return message | {"body": json.dumps(asked).encode()}

    return changed


def app_from_env() -> ASGIApp:
    """Return the API with the environment's settings, wrapped: what uvicorn's --factory calls."""
    app = real_app()
    return PutBack(app, Database(app.state.settings.database_url, pool_size=1))
