"""Lists of jobs by status or metadata find theirs by an index, and a lease is renewed without one.

A lease is renewed each second: while no column changes that an index holds, PostgreSQL writes the
new row beside the old one, and none of the indexes.

Revision ID: c8d25e7f1b03
Revises: 3e9b71c5d248
"""

import sqlalchemy as sa
from alembic import op

revision = "c8d25e7f1b03"
down_revision = "3e9b71c5d248"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_jobs_status_list", "jobs", ["organization_id", "status", "created_at", "id"]
    )
    op.create_index(
        "ix_jobs_metadata",
        "jobs",
        ["user_metadata"],
        postgresql_using="gin",
        postgresql_ops={"user_metadata": "jsonb_path_ops"},
    )
    running = sa.text("status = 'running'")
    op.create_index("ix_jobs_running", "jobs", ["id"], postgresql_where=running)
    op.drop_index("ix_jobs_leased", table_name="jobs")


def downgrade() -> None:
    running = sa.text("status = 'running'")
    op.create_index("ix_jobs_leased", "jobs", ["lease_until"], postgresql_where=running)
    op.drop_index("ix_jobs_running", table_name="jobs")
    op.drop_index("ix_jobs_metadata", table_name="jobs")
    op.drop_index("ix_jobs_status_list", table_name="jobs")
