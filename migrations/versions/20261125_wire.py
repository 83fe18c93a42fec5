"""Uploads in parts, requests that are sent again, models that are shared or deleted, admin keys.

Revision ID: 5f1c8a90d374
Revises: b7d40c1e9f26
"""

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "5f1c8a90d374"
down_revision = "b7d40c1e9f26"
branch_labels = None
depends_on = None


def moment(name: str) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True))


def created_at() -> sa.Column[datetime]:
    now = sa.text("now()")
    return sa.Column("created_at", sa.DateTime(timezone=True), server_default=now, nullable=False)


def text(name: str, *constraints: sa.ForeignKey, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), *constraints, nullable=nullable)


def organization(name: str = "organization_id") -> sa.Column[str]:
    return text(name, sa.ForeignKey("organizations.id"))


def upgrade() -> None:
    op.add_column(
        "api_keys", sa.Column("admin", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.add_column("jobs", moment("model_deleted_at"))
    op.create_index("ix_checkpoints_model", "checkpoints", ["model"])
    op.create_table(
        "uploads",
        text("id"),
        organization(),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        text("filename"),
        text("mime_type"),
        text("purpose"),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("file_lifetime_s", sa.BigInteger()),
        text("file_id", nullable=True),
        created_at(),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "ix_uploads_pending",
        "uploads",
        ["expires_at"],
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_table(
        "upload_parts",
        text("id"),
        text("upload_id", sa.ForeignKey("uploads.id", ondelete="CASCADE")),
        text("blob_id", sa.ForeignKey("blobs.id")),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        created_at(),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_upload_parts_upload", "upload_parts", ["upload_id"])
    op.create_index("ix_upload_parts_blob", "upload_parts", ["blob_id"])
    op.create_table(
        "submissions",
        text("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE")),
        organization(),
        text("key_id"),
        text("idempotency_key", nullable=True),
        text("body_sha256"),
        created_at(),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index(
        "ix_submissions_idempotency",
        "submissions",
        ["organization_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_index("ix_submissions_body", "submissions", ["key_id", "body_sha256", "created_at"])
    op.create_index("ix_submissions_age", "submissions", ["created_at"])
    op.create_table(
        "checkpoint_permissions",
        text("id"),
        organization(),
        text("model"),
        organization("project_id"),
        created_at(),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "ix_checkpoint_permissions_model",
        "checkpoint_permissions",
        ["organization_id", "model", "project_id"],
        unique=True,
    )
    op.create_index(
        "ix_checkpoint_permissions_project", "checkpoint_permissions", ["project_id", "model"]
    )


def downgrade() -> None:
    op.drop_table("checkpoint_permissions")
    op.drop_table("submissions")
    op.drop_table("upload_parts")
    op.drop_table("uploads")
    op.drop_index("ix_checkpoints_model", table_name="checkpoints")
    op.drop_column("jobs", "model_deleted_at")
    op.drop_column("api_keys", "admin")
