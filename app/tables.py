"""Every table on one page."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    PrimaryKeyConstraint,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.jobs.states import JobStatus

Json = dict[str, Any]


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012  SQLAlchemy reads it from the class
        str: Text,
        int: BigInteger,
        float: Double,
        datetime: DateTime(timezone=True),
        Json: JSONB,
        bytes: LargeBinary,
    }


class Organization(Base):
    """A tenant: it owns files, jobs, adapters and keys. A limit that is null is none."""

    __tablename__ = "organizations"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    max_running: Mapped[int | None]
    max_queued: Mapped[int | None]
    gpu_seconds_per_month: Mapped[int | None]
    max_stored_bytes: Mapped[int | None]


class ApiKey(Base):
    """A bearer key; only a keyed digest of its secret is kept.

    After a rotation the secret from before is good until `previous_until`.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    name: Mapped[str]
    scope: Mapped[str] = mapped_column(server_default="write")
    digest: Mapped[bytes]
    previous_digest: Mapped[bytes | None]
    previous_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class AuditEvent(Base):
    """A change that somebody made; `key_id` is null where the operator did. Never deleted."""

    __tablename__ = "audit_events"
    __table_args__ = (Index("ix_audit_events_list", "organization_id", "seq"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(always=True))
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    key_id: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    action: Mapped[str]
    target: Mapped[str]
    ip: Mapped[str | None]
    request_id: Mapped[str | None]
    data: Mapped[Json]


class Blob(Base):
    """Bytes in chunks of 1 MiB.

    `state` is writing until size and hash are known, then ready, and deleting once nobody owns it.
    `writer` is the attempt at a job that writes it; what it leaves half written ends with it.
    """

    __tablename__ = "blobs"
    __table_args__ = (
        Index("ix_blobs_unready", "written_at", postgresql_where=text("state <> 'ready'")),
        Index("ix_blobs_bytes", "state", "size"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    state: Mapped[str]
    size: Mapped[int | None]
    sha256: Mapped[str | None]
    writer: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    written_at: Mapped[datetime] = mapped_column(server_default=func.now())


class BlobChunk(Base):
    """One MiB of a blob. The column's storage is EXTERNAL: adapters do not compress."""

    __tablename__ = "blob_chunks"
    __table_args__ = (PrimaryKeyConstraint("blob_id", "seq"),)

    blob_id: Mapped[str] = mapped_column(ForeignKey("blobs.id", ondelete="CASCADE"))
    seq: Mapped[int]
    data: Mapped[bytes]


class File(Base):
    """A file as OpenAI's wire shows it; rows, format and lint are known for training files."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_list", "organization_id", "created_at", "id"),
        Index("ix_files_blob", "blob_id"),
        Index("ix_files_expiring", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    blob_id: Mapped[str] = mapped_column(ForeignKey("blobs.id"))
    filename: Mapped[str]
    purpose: Mapped[str]
    size_bytes: Mapped[int]
    sha256: Mapped[str]
    rows: Mapped[int | None]
    row_format: Mapped[str | None]
    lint: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]


class Upload(Base):
    """A large file that comes in parts; `file_id` is what became of them.

    `status` is pending, then completed, cancelled or expired; `expires_at` ends a pending one.
    """

    __tablename__ = "uploads"
    __table_args__ = (
        Index("ix_uploads_pending", "expires_at", postgresql_where=text("status = 'pending'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    status: Mapped[str] = mapped_column(server_default="pending")
    filename: Mapped[str]
    mime_type: Mapped[str]
    purpose: Mapped[str]
    size_bytes: Mapped[int]
    file_lifetime_s: Mapped[int | None]
    file_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]


class UploadPart(Base):
    """A piece of an upload; who completes it says in which order they stand."""

    __tablename__ = "upload_parts"
    __table_args__ = (
        Index("ix_upload_parts_upload", "upload_id"),
        Index("ix_upload_parts_blob", "blob_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"))
    blob_id: Mapped[str] = mapped_column(ForeignKey("blobs.id"))
    size_bytes: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class FileReport(Base):
    """What a look at a file's rows found, kept: each model and validation file has its own.

    An empty `model` or `validation_file_id` stands for none; the report ends with its file.
    """

    __tablename__ = "file_reports"
    __table_args__ = (PrimaryKeyConstraint("file_id", "model", "validation_file_id"),)

    file_id: Mapped[str] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"))
    model: Mapped[str]
    validation_file_id: Mapped[str]
    report: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Job(Base):
    """A fine-tuning job: the row is the truth, whatever the queue says."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_list", "organization_id", "created_at", "id"),
        Index("ix_jobs_status_list", "organization_id", "status", "created_at", "id"),
        Index(
            "ix_jobs_metadata",
            "user_metadata",
            postgresql_using="gin",
            postgresql_ops={"user_metadata": "jsonb_path_ops"},
        ),
        Index(
            "ix_jobs_waiting",
            "priority",
            "created_at",
            postgresql_where=text("status = 'queued'"),
        ),
        # Not over lease_until: while nothing that is indexed changes, a renewal writes no index.
        Index("ix_jobs_running", "id", postgresql_where=text("status = 'running'")),
        Index("ix_jobs_outcome", "status", "error_code"),
        Index("ix_jobs_succeeded", "finished_at", postgresql_where=text("status = 'succeeded'")),
        Index("ix_jobs_training_file", "training_file_id"),
        Index("ix_jobs_validation_file", "validation_file_id"),
        Index("ix_jobs_fine_tuned_model", "fine_tuned_model"),
        Index(
            "ix_jobs_adapter_blob",
            "adapter_blob_id",
            postgresql_where=text("adapter_blob_id IS NOT NULL"),
        ),
        Index(
            "ix_jobs_result_file",
            "result_file_id",
            postgresql_where=text("result_file_id IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    status: Mapped[JobStatus] = mapped_column(Text)
    priority: Mapped[int] = mapped_column(server_default="0")
    model: Mapped[str]
    training_file_id: Mapped[str]
    validation_file_id: Mapped[str | None]
    suffix: Mapped[str | None]
    method: Mapped[Json]
    hyperparameters: Mapped[Json]
    user_metadata: Mapped[Json | None]
    integrations: Mapped[list[Json] | None] = mapped_column(JSONB(none_as_null=True))
    spec: Mapped[Json]
    traceparent: Mapped[str | None]  # of the request, in W3C's form
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    queued_at: Mapped[datetime] = mapped_column(server_default=func.now())
    retry_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    attempt: Mapped[int] = mapped_column(server_default="0")
    lost_attempts: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    worker: Mapped[str | None]
    stop_requested: Mapped[str | None]

    step: Mapped[int] = mapped_column(server_default="0")
    total_steps: Mapped[int]
    metric_seq: Mapped[int] = mapped_column(server_default="0")  # of the metrics told last
    progress_at: Mapped[datetime | None]
    trained_tokens: Mapped[int | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    error_param: Mapped[str | None]
    fine_tuned_model: Mapped[str | None]
    model_deleted_at: Mapped[datetime | None]
    adapter_blob_id: Mapped[str | None] = mapped_column(ForeignKey("blobs.id"))
    result_file_id: Mapped[str | None]


class Comparison(Base):
    """Methods that are compared, each by one job a seed; `body` is what was asked for."""

    __tablename__ = "comparisons"
    __table_args__ = (Index("ix_comparisons_list", "organization_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    name: Mapped[str | None]
    body: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ComparisonJob(Base):
    """Which job is the run of which method, by its place in the body, with which seed."""

    __tablename__ = "comparison_jobs"
    __table_args__ = (
        PrimaryKeyConstraint("comparison_id", "method", "seed"),
        Index("ix_comparison_jobs_job", "job_id", unique=True),
    )

    comparison_id: Mapped[str] = mapped_column(ForeignKey("comparisons.id", ondelete="CASCADE"))
    method: Mapped[int]
    seed: Mapped[int]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))


class Submission(Base):
    """The request that made a job, so that the same one sent again makes no second.

    `body_sha256` is of what was understood of it; `key_id` is the API key, `idempotency_key` the
    caller's own name for the request.
    """

    __tablename__ = "submissions"
    __table_args__ = (
        Index(
            "ix_submissions_idempotency",
            "organization_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
        Index("ix_submissions_body", "key_id", "body_sha256", "created_at"),
        Index("ix_submissions_age", "created_at"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    key_id: Mapped[str]
    idempotency_key: Mapped[str | None]
    body_sha256: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Attempt(Base):
    """One worker's try at a job, from claim to end; open while `ended_at` is null."""

    __tablename__ = "attempts"
    __table_args__ = (
        PrimaryKeyConstraint("job_id", "number"),
        Index("ix_attempts_outcome", "outcome"),
        Index("ix_attempts_open", "job_id", unique=True, postgresql_where=text("ended_at IS NULL")),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    number: Mapped[int]
    worker: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    reason: Mapped[str | None]
    first_step: Mapped[int | None]
    last_step: Mapped[int | None]


class ResumeState(Base):
    """A checkpoint that another worker can carry on from; the last two of a job are kept."""

    __tablename__ = "resume_states"
    __table_args__ = (
        PrimaryKeyConstraint("job_id", "step"),
        Index("ix_resume_states_blob", "blob_id"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    step: Mapped[int]
    attempt: Mapped[int]
    blob_id: Mapped[str] = mapped_column(ForeignKey("blobs.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class JobEvent(Base):
    """A line in a job's story.

    `seq` is drawn by a trigger while the job's row is locked: the later commit has the larger one.
    """

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_list", "job_id", "seq"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(always=True))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    level: Mapped[str]
    message: Mapped[str]
    type: Mapped[str]
    data: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Metric(Base):
    """One value of one metric at one optimizer step; NaN and infinities are stored as such.

    `seq` numbers what a job told, up to its `metric_seq`: the values told of a step together share
    one, and the later commit has the larger one.
    """

    __tablename__ = "metrics"
    __table_args__ = (
        PrimaryKeyConstraint("job_id", "name", "step"),
        Index("ix_metrics_seq", "job_id", "seq"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    name: Mapped[str]
    step: Mapped[int]
    attempt: Mapped[int]
    seq: Mapped[int]
    value: Mapped[float]
    ts: Mapped[datetime]


class Checkpoint(Base):
    """An adapter kept from the middle of a run."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        Index("ix_checkpoints_step", "job_id", "step", unique=True),
        Index("ix_checkpoints_blob", "blob_id"),
        Index("ix_checkpoints_model", "model"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    step: Mapped[int]
    metrics: Mapped[Json]
    model: Mapped[str]
    blob_id: Mapped[str] = mapped_column(ForeignKey("blobs.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Rollout(Base):
    """One of a group that a run by reinforcement sampled for a step, turn by turn.

    Of a job with many steps those of some are kept.
    """

    __tablename__ = "rollouts"
    __table_args__ = (Index("ix_rollouts_step", "job_id", "step", "index", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    step: Mapped[int]
    index: Mapped[int]
    reward: Mapped[float]
    success: Mapped[bool | None]
    failure: Mapped[str | None]
    turns: Mapped[list[Json]] = mapped_column(JSONB)
    sampled_at: Mapped[datetime]


class CheckpointPermission(Base):
    """Lets another organization use a fine-tuned model, named as its owner's."""

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (
        Index(
            "ix_checkpoint_permissions_model",
            "organization_id",
            "model",
            "project_id",
            unique=True,
        ),
        Index("ix_checkpoint_permissions_project", "project_id", "model"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    model: Mapped[str]
    project_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class LogChunk(Base):
    """A piece of what a run printed, whole lines, in order."""

    __tablename__ = "log_chunks"
    __table_args__ = (PrimaryKeyConstraint("job_id", "seq"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    seq: Mapped[int] = mapped_column(Identity(always=True))
    attempt: Mapped[int]
    text: Mapped[str]


class Preview(Base):
    """A question to a model, and what was answered so far: the API asks, a worker answers.

    `state` is waiting, running, then done, failed or cancelled. `blob_id` holds the adapter, or the
    whole model; it is not owned: with a model that is deleted the bytes go, and the preview fails.
    """

    __tablename__ = "previews"
    __table_args__ = (
        Index("ix_previews_waiting", "created_at", postgresql_where=text("state = 'waiting'")),
        Index(
            "ix_previews_live",
            "organization_id",
            postgresql_where=text("state IN ('waiting', 'running')"),
        ),
        Index("ix_previews_age", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    model: Mapped[str]
    base_model: Mapped[str]
    blob_id: Mapped[str | None]
    question: Mapped[Json]
    state: Mapped[str] = mapped_column(server_default="waiting")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deadline_at: Mapped[datetime]

    worker: Mapped[str | None]
    beat_at: Mapped[datetime | None]
    text: Mapped[str] = mapped_column(server_default="")
    finish_reason: Mapped[str | None]
    prompt_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    error_param: Mapped[str | None]


class Worker(Base):
    """A worker process that said it is alive; `telemetry` is for who watches over it."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    hostname: Mapped[str]
    devices: Mapped[Json]
    telemetry: Mapped[Json] = mapped_column(server_default="{}")
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebhookEndpoint(Base):
    """Where an organization wants to be told of its jobs; its secrets are sealed.

    After a rotation messages are signed with the secret from before too, until `previous_until`.
    """

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index("ix_webhook_endpoints_list", "organization_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]] = mapped_column(ARRAY(Text))
    secret: Mapped[bytes]
    secret_hint: Mapped[str]
    previous_secret: Mapped[bytes | None]
    previous_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]


class WebhookDelivery(Base):
    """One message to one endpoint: written with what it tells of, sent until it is taken.

    `state` is pending, then delivered or given_up. `next_at` is when a pending one is tried; while
    it is being tried, when it may be by another.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_list", "endpoint_id", "seq"),
        Index("ix_webhook_deliveries_due", "next_at", postgresql_where=text("state = 'pending'")),
        Index(
            "ix_webhook_deliveries_over", "created_at", postgresql_where=text("state <> 'pending'")
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(always=True))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    event_id: Mapped[str]
    event_type: Mapped[str]
    body: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    next_at: Mapped[datetime] = mapped_column(server_default=func.now())
    gives_up_at: Mapped[datetime]


class WebhookAttempt(Base):
    """One try at a delivery: what was answered, or why nothing was."""

    __tablename__ = "webhook_attempts"
    __table_args__ = (PrimaryKeyConstraint("delivery_id", "number"),)

    delivery_id: Mapped[str] = mapped_column(
        ForeignKey("webhook_deliveries.id", ondelete="CASCADE")
    )
    number: Mapped[int]
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    duration_ms: Mapped[int]
    status_code: Mapped[int | None]
    error: Mapped[str | None]
    response: Mapped[str | None]


class IntegrationKey(Base):
    """An organization's key to a service that its metrics are sent to, sealed."""

    __tablename__ = "integration_keys"
    __table_args__ = (PrimaryKeyConstraint("organization_id", "type"),)

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    type: Mapped[str]
    secret: Mapped[bytes]
    last4: Mapped[str]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Forward(Base):
    """What of a job's metrics was sent elsewhere: all up to `step`.

    `state` is pending, then done or given_up. `next_at` is when a pending one is sent on; while
    that is being done, when it may be by another. `failures` counts those in a row.
    """

    __tablename__ = "forwards"
    __table_args__ = (
        PrimaryKeyConstraint("job_id", "target"),
        Index("ix_forwards_due", "next_at", postgresql_where=text("state = 'pending'")),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    target: Mapped[str]
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    state: Mapped[str] = mapped_column(server_default="pending")
    step: Mapped[int] = mapped_column(server_default="0")
    attempt: Mapped[int] = mapped_column(server_default="0")
    failures: Mapped[int] = mapped_column(server_default="0")
    url: Mapped[str | None]
    next_at: Mapped[datetime] = mapped_column(server_default=func.now())
