"""Attempts, resume states, budgets, and when bytes were last written and files expire.

Revision ID: 3e9a17c5b2d8
Revises: 8c2e6d7a4b10
"""

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "3e9a17c5b2d8"
down_revision = "8c2e6d7a4b10"
branch_labels = None
depends_on = None

NOW = sa.text("now()")


def moment(name: str, *, nullable: bool = True, now: bool = False) -> sa.Column[datetime]:
    return sa.Column(
        name, sa.DateTime(timezone=True), nullable=nullable, server_default=NOW if now else None
    )


def upgrade() -> None:
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.Text(), sa.ForeignKey("jobs.id", ondelete="CASCADE")),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        moment("started_at", nullable=False, now=True),
        moment("ended_at"),
        sa.Column("outcome", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("first_step", sa.BigInteger()),
        sa.Column("last_step", sa.BigInteger()),
        sa.PrimaryKeyConstraint("job_id", "number"),
    )
    op.create_index(
        "ix_attempts_open",
        "attempts",
        ["job_id"],
        unique=True,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "resume_states",
        sa.Column("job_id", sa.Text(), sa.ForeignKey("jobs.id", ondelete="CASCADE")),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("blob_id", sa.Text(), sa.ForeignKey("blobs.id"), nullable=False),
        moment("created_at", nullable=False, now=True),
        sa.PrimaryKeyConstraint("job_id", "step"),
    )
    op.add_column("jobs", moment("queued_at", nullable=False, now=True))
    op.execute("UPDATE jobs SET queued_at = created_at")
    op.add_column("jobs", moment("retry_at"))
    op.execute(
        """
        UPDATE jobs SET spec =
          '{"budget": {"max_duration_s": null, "max_steps": null}}'::jsonb || spec
        """
    )
    # What ran before attempts were written down: the open one of each running job.
    op.execute(
        "INSERT INTO attempts (job_id, number, worker, started_at, last_step)"
        " SELECT id, attempt, coalesce(worker, ''), coalesce(started_at, now()), step"
        " FROM jobs WHERE status = 'running'"
    )
    op.add_column("blobs", sa.Column("writer", sa.Text()))
    op.add_column("blobs", moment("written_at", nullable=False, now=True))
    op.create_index(
        "ix_blobs_unready",
        "blobs",
        ["written_at"],
        postgresql_where=sa.text("state <> 'ready'"),
    )
    op.add_column("files", moment("expires_at"))
    op.create_index("ix_files_blob", "files", ["blob_id"])
    op.create_index(
        "ix_files_expiring",
        "files",
        ["expires_at"],
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_files_expiring", table_name="files")
    op.drop_index("ix_files_blob", table_name="files")
    op.drop_column("files", "expires_at")
    op.drop_index("ix_blobs_unready", table_name="blobs")
    op.drop_column("blobs", "written_at")
    op.drop_column("blobs", "writer")
    op.execute("UPDATE jobs SET spec = spec - 'budget'")
    op.drop_column("jobs", "retry_at")
    op.drop_column("jobs", "queued_at")
    op.drop_table("resume_states")
    op.drop_table("attempts")
