"""Looks for rows and bytes that contradict each other; changes nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app import blobs
from app.blobs import CHUNK_BYTES, BlobGone, CorruptBlob, StoredBytes
from app.db import Database
from app.jobs.states import TERMINAL
from app.tables import Blob, Job

BLOBS_PER_LOOK = 1000
BROKEN = "broken blob"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: what kind, of which row, and a sentence about it."""

    kind: str
    subject: str
    message: str


@dataclass(frozen=True)
class Totals:
    """What was looked at: ready blobs, their bytes, jobs."""

    blobs: int
    size_bytes: int
    jobs: int


# Each finds rows (subject, message) in one statement, and so sees one moment: a service that is
# at work is not wrong. Blobs being written, abandoned or deleted are nobody's yet, or the sweep's.
CHECKS = {
    "orphaned blob": """
        SELECT b.id, format('%s bytes are ready, and nobody owns them', b.size)
        FROM blobs b
        WHERE b.state = 'ready'
          AND NOT EXISTS (SELECT FROM files f WHERE f.blob_id = b.id)
          AND NOT EXISTS (SELECT FROM jobs j WHERE j.adapter_blob_id = b.id)
          AND NOT EXISTS (SELECT FROM checkpoints c WHERE c.blob_id = b.id)
          AND NOT EXISTS (SELECT FROM resume_states r WHERE r.blob_id = b.id)
          AND NOT EXISTS (SELECT FROM upload_parts p WHERE p.blob_id = b.id)
    """,
    BROKEN: """
        SELECT b.id, format(
            '%s of %s chunks are whole, and %s of %s bytes are there',
            coalesce(c.whole, 0), ceil(b.size::numeric / :chunk), coalesce(c.bytes, 0), b.size)
        FROM blobs b
        LEFT JOIN (
            SELECT blob_id, count(*) AS chunks, sum(length(data)) AS bytes,
                count(*) FILTER (WHERE seq >= 0 AND length(data) =
                    least(:chunk, s.size - seq * :chunk)) AS whole
            FROM blob_chunks JOIN blobs s ON s.id = blob_id AND s.state = 'ready'
            GROUP BY blob_id
        ) c ON c.blob_id = b.id
        WHERE b.state = 'ready' AND (
            b.size IS NULL OR b.sha256 IS NULL
            OR coalesce(c.chunks, 0) <> ceil(b.size::numeric / :chunk)
            OR coalesce(c.whole, 0) <> ceil(b.size::numeric / :chunk))
    """,
    "owner of a blob that is not ready": """
        SELECT o.id, format('its blob %s is %s, so that nobody can read it', b.id, b.state)
        FROM (
            SELECT id, blob_id FROM files
            UNION ALL SELECT id, adapter_blob_id FROM jobs WHERE adapter_blob_id IS NOT NULL
            UNION ALL SELECT id, blob_id FROM checkpoints
            UNION ALL SELECT format('%s step %s', job_id, step), blob_id FROM resume_states
            UNION ALL SELECT id, blob_id FROM upload_parts
        ) o JOIN blobs b ON b.id = o.blob_id
        WHERE b.state <> 'ready'
    """,
    "owner in another organization": """
        SELECT o.id, format('it is of %s, and its blob %s of %s',
            o.organization_id, b.id, b.organization_id)
        FROM (
            SELECT id, organization_id, blob_id FROM files
            UNION ALL SELECT id, organization_id, adapter_blob_id FROM jobs
                WHERE adapter_blob_id IS NOT NULL
            UNION ALL SELECT c.id, j.organization_id, c.blob_id
                FROM checkpoints c JOIN jobs j ON j.id = c.job_id
            UNION ALL SELECT format('%s step %s', r.job_id, r.step), j.organization_id, r.blob_id
                FROM resume_states r JOIN jobs j ON j.id = r.job_id
            UNION ALL SELECT p.id, u.organization_id, p.blob_id
                FROM upload_parts p JOIN uploads u ON u.id = p.upload_id
        ) o JOIN blobs b ON b.id = o.blob_id
        WHERE b.organization_id <> o.organization_id
    """,
    "file unlike its blob": """
        SELECT f.id, format('it says %s bytes with sha256 %s, its blob %s %s with %s',
            f.size_bytes, f.sha256, b.id, b.size, b.sha256)
        FROM files f JOIN blobs b ON b.id = f.blob_id
        WHERE b.state = 'ready' AND (f.size_bytes, f.sha256) <> (b.size, b.sha256)
    """,
    "success without a model": """
        SELECT id, format('it succeeded, and its adapter is %s, its model %s',
            coalesce(adapter_blob_id, 'missing'), coalesce(fine_tuned_model, 'without a name'))
        FROM jobs
        WHERE status = 'succeeded' AND (fine_tuned_model IS NULL
            OR adapter_blob_id IS NULL AND model_deleted_at IS NULL)
    """,
    "job without its data": """
        SELECT n.id, format('it is %s, and its %s file %s is not there',
            n.status, n.role, n.file_id)
        FROM (
            SELECT id, organization_id, status, 'training' AS role, training_file_id AS file_id
            FROM jobs WHERE status <> ALL(:terminal)
            UNION ALL
            SELECT id, organization_id, status, 'validation', validation_file_id
            FROM jobs WHERE status <> ALL(:terminal) AND validation_file_id IS NOT NULL
        ) n LEFT JOIN files f ON f.id = n.file_id AND f.organization_id = n.organization_id
        WHERE f.id IS NULL
    """,
    "job without its result file": """
        SELECT j.id, format('its result file %s is not there', j.result_file_id)
        FROM jobs j LEFT JOIN files f ON f.id = j.result_file_id
        WHERE j.result_file_id IS NOT NULL AND f.id IS NULL
    """,
    "running job without a lease": """
        SELECT id, 'it runs without a lease: no sweep will ever find its worker silent'
        FROM jobs WHERE status = 'running' AND lease_until IS NULL
    """,
    "running job without its attempt": """
        SELECT j.id, format('it runs attempt %s, and %s is open', j.attempt,
            coalesce('attempt ' || a.number, 'none'))
        FROM jobs j LEFT JOIN attempts a ON a.job_id = j.id AND a.ended_at IS NULL
        WHERE j.status = 'running' AND a.number IS DISTINCT FROM j.attempt
    """,
    "open attempt of a job that does not run": """
        SELECT j.id, format('attempt %s is open, and the job is %s', a.number, j.status)
        FROM attempts a JOIN jobs j ON j.id = a.job_id
        WHERE a.ended_at IS NULL AND j.status <> 'running'
    """,
    "resume state of a job that is over": """
        SELECT format('%s step %s', r.job_id, r.step),
            format('the job is %s; the next sweep deletes it', j.status)
        FROM resume_states r JOIN jobs j ON j.id = r.job_id
        WHERE j.status = ANY(:terminal)
    """,
    "parts of an upload that is over": """
        SELECT p.id, format('its upload %s is %s', u.id, u.status)
        FROM upload_parts p JOIN uploads u ON u.id = p.upload_id
        WHERE u.status <> 'pending'
    """,
    "too many resume states": """
        SELECT j.id, format('it keeps %s resume states, not two', count(*))
        FROM resume_states r JOIN jobs j ON j.id = r.job_id
        WHERE j.status <> ALL(:terminal)
        GROUP BY j.id HAVING count(*) > 2
    """,
}


async def check(tx: AsyncSession) -> list[Finding]:
    """Ask every question that rows alone can answer."""
    values = {"chunk": CHUNK_BYTES, "terminal": [status.value for status in TERMINAL]}
    found = []
    for kind, sql in CHECKS.items():
        used = {name: value for name, value in values.items() if f":{name}" in sql}
        rows = await tx.execute(text(sql).bindparams(**used))
        found += [Finding(kind, subject, message) for subject, message in rows]
    return found


async def check_bytes(
    db: Database, known: Sequence[Finding], advance: Callable[[int], None]
) -> list[Finding]:
    """Read every ready blob that is not `known` to be broken, and compare its hash.

    `advance` hears of the bytes that are done.
    """
    broken = {finding.subject for finding in known if finding.kind == BROKEN}
    found, last = [], ""
    while batch := await _ready(db, after=last):
        last = batch[-1].blob_id
        for stored in batch:
            try:
                if stored.blob_id not in broken:
                    await blobs.verify(db, stored)
            except CorruptBlob as error:
                found.append(Finding("corrupt blob", stored.blob_id, str(error)))
            except BlobGone:  # deleted while we looked
                pass
            advance(stored.size)
    return found


async def totals(tx: AsyncSession) -> Totals:
    """Count what there is to look at."""
    ready = select(func.count(), func.sum(Blob.size)).where(Blob.state == "ready")
    count, size = (await tx.execute(ready)).one()
    jobs = (await tx.execute(select(func.count()).select_from(Job))).scalar_one()
    return Totals(blobs=count, size_bytes=int(size or 0), jobs=jobs)


async def _ready(db: Database, *, after: str) -> list[StoredBytes]:
    whole = (Blob.state == "ready", Blob.size.is_not(None), Blob.sha256.is_not(None))
    query = select(Blob).where(*whole, Blob.id > after).order_by(Blob.id).limit(BLOBS_PER_LOOK)
    async with db.transaction() as tx:
        found = await tx.scalars(query)
        return [StoredBytes(blob.id, blob.size or 0, blob.sha256 or "") for blob in found]
