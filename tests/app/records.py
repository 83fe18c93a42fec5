"""Rows as the service leaves them, without its ceremony."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import text

from app import blobs
from app.blobs import StoredBytes
from app.db import Database, connected
from app.files import service as files
from app.ids import new_id
from app.jobs.states import JobStatus
from app.settings import Settings
from app.tables import Base, Checkpoint, File, Job, Organization, ResumeState, UploadPart
from app.uploads import service as uploads
from app.uploads.service import NewUpload


async def stream(data: bytes, size: int = 1 << 20) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def run(db: Database, statement: str, **values: Any) -> Any:
    """Execute SQL, and return its first value where it has one."""
    async with db.transaction() as tx:
        result = await tx.execute(text(statement), values)
        return result.scalar() if result.returns_rows else None


def run_now(settings: Settings, statement: str, **values: Any) -> Any:
    """Execute SQL from a test that is not asynchronous."""

    async def connect_and_run() -> Any:
        async with connected(settings.database_url) as db:
            return await run(db, statement, **values)

    return asyncio.run(connect_and_run())


async def exists(db: Database, table: type[Base], key: Any) -> bool:
    async with db.transaction() as tx:
        return await tx.get(table, key) is not None


async def state_of(db: Database, blob_id: str) -> str | None:
    return await run(db, "SELECT state FROM blobs WHERE id = :id", id=blob_id)


async def make_organization(db: Database) -> str:
    row = Organization(id=new_id("org-"), name=new_id("records-"))
    async with db.transaction() as tx:
        tx.add(row)
    return row.id


async def ready_blob(db: Database, organization_id: str, data: bytes) -> StoredBytes:
    stored = await blobs.write(db, organization_id, stream(data))
    async with db.transaction() as tx:
        await blobs.seal(tx, stored)
    return stored


async def make_file(
    db: Database, organization_id: str, data: bytes = b"{}\n", *, purpose: str = "fine-tune"
) -> File:
    stored = await blobs.write(db, organization_id, stream(data))
    async with db.transaction() as tx:
        return await files.add(
            tx,
            organization_id,
            stored,
            filename="train.jsonl",
            purpose=purpose,
            rows=None,
            row_format=None,
        )


def new_job(organization_id: str, file_id: str, status: JobStatus, **values: Any) -> Job:
    return Job(
        id=new_id("ftjob-"),
        organization_id=organization_id,
        status=status,
        model="tiny-llama",
        training_file_id=file_id,
        method={},
        hyperparameters={},
        spec={"resources": {"gpus": 1}},
        total_steps=10,
        **values,
    )


async def make_job(
    db: Database, organization_id: str, file_id: str, status: JobStatus, **values: Any
) -> str:
    job = new_job(organization_id, file_id, status, **values)
    async with db.transaction() as tx:
        tx.add(job)
    return job.id


async def make_checkpoint(db: Database, job_id: str, blob_id: str, *, model: str = "ft:x") -> str:
    row = Checkpoint(
        id=new_id("ftckpt_"), job_id=job_id, step=5, metrics={}, model=model, blob_id=blob_id
    )
    async with db.transaction() as tx:
        tx.add(row)
    return row.id


async def make_part(db: Database, organization_id: str, data: bytes) -> str:
    """A part of a new upload of its length."""
    stored = await ready_blob(db, organization_id, data)
    async with db.transaction() as tx:
        asked = NewUpload("train.jsonl", "text/jsonl", "fine-tune", len(data), None)
        upload = await uploads.create(tx, organization_id, asked, max_bytes=len(data))
        part = UploadPart(
            id=new_id("part_"), upload_id=upload.id, blob_id=stored.blob_id, size_bytes=len(data)
        )
        tx.add(part)
    return part.id


async def make_resume_state(
    db: Database, organization_id: str, job_id: str, step: int, data: bytes = b"state"
) -> str:
    stored = await ready_blob(db, organization_id, data)
    async with db.transaction() as tx:
        tx.add(ResumeState(job_id=job_id, step=step, attempt=1, blob_id=stored.blob_id))
    return stored.blob_id
