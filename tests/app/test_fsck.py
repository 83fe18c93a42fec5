"""Every kind of damage is found, and nothing else is."""

from dataclasses import dataclass

import pytest
from sqlalchemy import text

from app import blobs, fsck
from app.blobs import CHUNK_BYTES
from app.db import Database
from app.fsck import Finding
from app.jobs.states import JobStatus
from app.sweep import sweep_storage
from tests.app.records import (
    make_checkpoint,
    make_file,
    make_job,
    make_organization,
    make_part,
    make_resume_state,
    ready_blob,
    run,
    stream,
)


@dataclass(frozen=True)
class World:
    """Ids of healthy rows: a job that succeeded, one that runs, and ones that wait."""

    org: str
    stranger: str
    data: str
    valid: str
    result: str
    done: str
    adapter: str
    checkpoint: str
    running: str
    state: str
    queued: str
    paused: str
    part: str


class UndoneError(Exception):
    """Raised so that damage does not last."""


@pytest.fixture(scope="module")
async def world(own: Database) -> World:
    org, stranger = await make_organization(own), await make_organization(own)
    data, valid = await make_file(own, org), await make_file(own, org)
    result = await make_file(own, org, b"step\n", purpose="fine-tune-results")
    adapter = await ready_blob(own, org, bytes(2 * CHUNK_BYTES + 7))
    done = await make_job(
        own,
        org,
        data.id,
        JobStatus.SUCCEEDED,
        attempt=2,
        adapter_blob_id=adapter.blob_id,
        result_file_id=result.id,
        fine_tuned_model="ft:x",
    )
    checkpoint = await make_checkpoint(own, done, (await ready_blob(own, org, b"half")).blob_id)
    running = await make_job(own, org, data.id, JobStatus.RUNNING, attempt=2)
    await run(own, "UPDATE jobs SET lease_until = now() WHERE id = :id", id=running)
    for job_id, number, ended in (
        (done, 1, "now()"),
        (done, 2, "now()"),
        (running, 1, "now()"),
        (running, 2, "NULL"),
    ):
        values = f"(:id, :number, 'w', {ended})"
        await run(
            own,
            f"INSERT INTO attempts (job_id, number, worker, ended_at) VALUES {values}",
            id=job_id,
            number=number,
        )
    await make_resume_state(own, org, running, 5)
    state = await make_resume_state(own, org, running, 10)
    queued = await make_job(own, org, data.id, JobStatus.QUEUED, validation_file_id=valid.id)
    paused = await make_job(own, org, valid.id, JobStatus.PAUSED)
    await make_resume_state(own, org, paused, 5)
    await make_job(own, org, "file-deleted", JobStatus.CANCELLED, validation_file_id="file-too")
    deleted = await make_job(own, org, data.id, JobStatus.SUCCEEDED, fine_tuned_model="ft:gone")
    await run(own, "UPDATE jobs SET model_deleted_at = now() WHERE id = :id", id=deleted)
    part = await make_part(own, org, b"a part")
    await ready_blob(own, org, b"")
    await run(own, "UPDATE blobs SET state = 'deleting' WHERE size = 0")
    await blobs.write(own, org, stream(b"being written"))
    return World(
        org=org,
        stranger=stranger,
        data=data.id,
        valid=valid.id,
        result=result.id,
        done=done,
        adapter=adapter.blob_id,
        checkpoint=checkpoint,
        running=running,
        state=state,
        queued=queued,
        paused=paused,
        part=part,
    )


async def found_after(db: Database, world: World, damage: str) -> list[Finding]:
    """What is found after damage that is undone again."""
    found: list[Finding] = []
    with pytest.raises(UndoneError):
        async with db.transaction() as tx:
            for statement in damage.split(";"):
                used = {
                    name: value for name, value in vars(world).items() if f":{name}" in statement
                }
                await tx.execute(text(statement).bindparams(**used))
            found = await fsck.check(tx)
            raise UndoneError
    return found


ORPHAN = "INSERT INTO blobs (id, organization_id, state, size, sha256) VALUES"
RESUME = "INSERT INTO resume_states (job_id, step, attempt, blob_id) SELECT"
LOSE = "DELETE FROM blob_chunks WHERE blob_id = :adapter AND seq ="
DAMAGES: list[tuple[str, str, str]] = [
    ("orphaned blob", "blob-x", f"{ORPHAN} ('blob-x', :org, 'ready', 0, '')"),
    (
        "orphaned blob",
        "adapter",
        "UPDATE jobs SET adapter_blob_id = (SELECT blob_id FROM checkpoints) WHERE id = :done",
    ),
    ("broken blob", "adapter", f"{LOSE} 0"),
    ("broken blob", "adapter", f"{LOSE} 1"),
    ("broken blob", "adapter", f"{LOSE} 2"),
    ("broken blob", "adapter", "DELETE FROM blob_chunks WHERE blob_id = :adapter"),
    (
        "broken blob",
        "adapter",
        "UPDATE blob_chunks SET seq = -1 WHERE blob_id = :adapter AND seq = 0",
    ),
    ("broken blob", "adapter", "INSERT INTO blob_chunks VALUES (:adapter, 3, '')"),
    (
        "broken blob",
        "adapter",
        "UPDATE blob_chunks SET data = substr(data, 2) WHERE blob_id = :adapter AND seq = 1;"
        "UPDATE blob_chunks SET data = data || 'x' WHERE blob_id = :adapter AND seq = 2",
    ),
    ("broken blob", "adapter", "UPDATE blobs SET size = size - 1 WHERE id = :adapter"),
    ("broken blob", "adapter", "UPDATE blobs SET size = NULL WHERE id = :adapter"),
    ("broken blob", "adapter", "UPDATE blobs SET sha256 = NULL WHERE id = :adapter"),
    (
        "owner of a blob that is not ready",
        "data",
        "UPDATE blobs SET state = 'deleting' FROM files f"
        " WHERE f.blob_id = blobs.id AND f.id = :data",
    ),
    (
        "owner of a blob that is not ready",
        "done",
        "UPDATE blobs SET state = 'writing' WHERE id = :adapter",
    ),
    (
        "owner of a blob that is not ready",
        "checkpoint",
        "UPDATE blobs SET state = 'deleting' FROM checkpoints c WHERE c.blob_id = blobs.id",
    ),
    (
        "owner of a blob that is not ready",
        "running step 10",
        "UPDATE blobs SET state = 'deleting' WHERE id = :state",
    ),
    (
        "owner in another organization",
        "valid",
        "UPDATE blobs SET organization_id = :stranger FROM files f"
        " WHERE f.blob_id = blobs.id AND f.id = :valid",
    ),
    (
        "owner in another organization",
        "done",
        "UPDATE blobs SET organization_id = :stranger WHERE id = :adapter",
    ),
    (
        "owner in another organization",
        "checkpoint",
        "UPDATE blobs SET organization_id = :stranger FROM checkpoints c"
        " WHERE c.blob_id = blobs.id",
    ),
    (
        "owner in another organization",
        "running step 10",
        "UPDATE blobs SET organization_id = :stranger WHERE id = :state",
    ),
    (
        "owner of a blob that is not ready",
        "part",
        "UPDATE blobs SET state = 'deleting' FROM upload_parts p WHERE p.blob_id = blobs.id",
    ),
    (
        "owner in another organization",
        "part",
        "UPDATE uploads SET organization_id = :stranger",
    ),
    ("parts of an upload that is over", "part", "UPDATE uploads SET status = 'cancelled'"),
    ("file unlike its blob", "result", "UPDATE files SET size_bytes = 4 WHERE id = :result"),
    ("file unlike its blob", "result", "UPDATE files SET sha256 = '' WHERE id = :result"),
    (
        "success without a model",
        "done",
        "UPDATE jobs SET fine_tuned_model = NULL WHERE id = :done",
    ),
    (
        "success without a model",
        "queued",
        "UPDATE jobs SET status = 'succeeded', fine_tuned_model = 'ft:y' WHERE id = :queued",
    ),
    (
        "job without its data",
        "queued",
        "UPDATE jobs SET training_file_id = 'file-x' WHERE id = :queued",
    ),
    (
        "job without its data",
        "queued",
        "UPDATE jobs SET validation_file_id = 'file-x' WHERE id = :queued",
    ),
    (
        "job without its data",
        "paused",
        "UPDATE jobs SET training_file_id = 'file-x' WHERE id = :paused",
    ),
    (
        "job without its data",
        "running",
        "UPDATE jobs SET training_file_id = 'file-x' WHERE id = :running",
    ),
    (
        "job without its result file",
        "done",
        "UPDATE jobs SET result_file_id = 'file-x' WHERE id = :done",
    ),
    (
        "running job without a lease",
        "running",
        "UPDATE jobs SET lease_until = NULL WHERE id = :running",
    ),
    (
        "running job without its attempt",
        "running",
        "UPDATE attempts SET ended_at = now() WHERE job_id = :running",
    ),
    (
        "running job without its attempt",
        "running",
        "UPDATE jobs SET attempt = 3 WHERE id = :running",
    ),
    (
        "open attempt of a job that does not run",
        "done",
        "UPDATE attempts SET ended_at = NULL WHERE job_id = :done AND number = 2",
    ),
    (
        "open attempt of a job that does not run",
        "running",
        "UPDATE jobs SET status = 'queued' WHERE id = :running",
    ),
    (
        "resume state of a job that is over",
        "paused step 5",
        "UPDATE jobs SET status = 'cancelled' WHERE id = :paused",
    ),
    (
        "too many resume states",
        "running",
        f"{ORPHAN} ('blob-x', :org, 'ready', 0, '');{RESUME} :running, 15, 2, 'blob-x'",
    ),
]


async def test_nothing_is_wrong_with_a_service_at_work(own: Database, world: World):
    async with own.transaction() as tx:
        assert await fsck.check(tx) == []
    assert await fsck.check_bytes(own, [], lambda size: None) == []


@pytest.mark.parametrize(("kind", "subject", "damage"), DAMAGES)
async def test_damage_is_found_and_nothing_else(
    own: Database, world: World, kind: str, subject: str, damage: str
):
    name, *rest = subject.split(" ", 1)
    expected = " ".join([getattr(world, name, name), *rest])

    found = await found_after(own, world, damage)

    assert [(finding.kind, finding.subject) for finding in found] == [(kind, expected)]


async def test_there_is_a_test_for_every_check():
    assert {kind for kind, _, _ in DAMAGES} == set(fsck.CHECKS)


async def test_what_the_next_sweep_clears_says_so_and_is_cleared(own: Database, world: World):
    job_id = await make_job(own, world.org, world.data, JobStatus.FAILED)
    await make_resume_state(own, world.org, job_id, 5)

    async with own.transaction() as tx:
        before = await fsck.check(tx)
    await sweep_storage(own, file_retention_days=None, resume_retention_days=30)
    async with own.transaction() as tx:
        after = await fsck.check(tx)

    assert ["next sweep" in finding.message for finding in before] == [True]
    assert after == []


async def test_a_flipped_byte_is_found_by_reading_alone(own: Database, world: World):
    flip = (
        "UPDATE blob_chunks SET data = set_byte(data, 3, 255 - get_byte(data, 3))"
        " WHERE blob_id = :id AND seq = 2"
    )
    done: list[int] = []
    await run(own, flip, id=world.adapter)

    async with own.transaction() as tx:
        shallow = await fsck.check(tx)
        looked_at = await fsck.totals(tx)
    deep = await fsck.check_bytes(own, shallow, done.append)
    await run(own, flip, id=world.adapter)

    assert shallow == []
    assert [(found.kind, found.subject) for found in deep] == [("corrupt blob", world.adapter)]
    assert (len(done), sum(done)) == (looked_at.blobs, looked_at.size_bytes)


async def test_a_blob_known_to_be_broken_is_reported_once(own: Database, world: World):
    stored = await ready_blob(own, world.org, b"whole")
    await run(own, "DELETE FROM blob_chunks WHERE blob_id = :id", id=stored.blob_id)

    async with own.transaction() as tx:
        shallow = await fsck.check(tx)
    deep = await fsck.check_bytes(own, shallow, lambda size: None)
    await run(own, "DELETE FROM blobs WHERE id = :id", id=stored.blob_id)

    assert {found.kind for found in shallow} == {"broken blob", "orphaned blob"}
    assert deep == []
