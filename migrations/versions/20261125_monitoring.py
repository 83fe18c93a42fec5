"""What a worker tells of itself, the trace of a job's request, and indexes to count by.

Revision ID: 94e0b7d3f5a2
Revises: 4b9e27d0c8f1
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "94e0b7d3f5a2"
down_revision = "4b9e27d0c8f1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "workers",
        sa.Column("telemetry", postgresql.JSONB(), nullable=False, server_default="{}"),
    )
    op.add_column("jobs", sa.Column("traceparent", sa.Text()))
    op.create_index("ix_jobs_outcome", "jobs", ["status", "error_code"])
    op.create_index("ix_attempts_outcome", "attempts", ["outcome"])
    op.create_index("ix_blobs_bytes", "blobs", ["state", "size"])


def downgrade() -> None:
    op.drop_index("ix_blobs_bytes", table_name="blobs")
    op.drop_index("ix_attempts_outcome", table_name="attempts")
    op.drop_index("ix_jobs_outcome", table_name="jobs")
    op.drop_column("jobs", "traceparent")
    op.drop_column("workers", "telemetry")
