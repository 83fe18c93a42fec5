"""Find a blob's owners, and a result file's job, without reading every job.

Revision ID: b7d40c1e9f26
Revises: 3e9a17c5b2d8
"""

import sqlalchemy as sa
from alembic import op

revision = "b7d40c1e9f26"
down_revision = "3e9a17c5b2d8"
branch_labels = None
depends_on = None

# Deleting a blob's row asks each of these columns whether it still names it.
OWNING = (
    ("ix_jobs_adapter_blob", "jobs", "adapter_blob_id"),
    ("ix_jobs_result_file", "jobs", "result_file_id"),
    ("ix_checkpoints_blob", "checkpoints", "blob_id"),
    ("ix_resume_states_blob", "resume_states", "blob_id"),
)


def upgrade() -> None:
    for name, table, column in OWNING:
        where = sa.text(f"{column} IS NOT NULL") if table == "jobs" else None
        op.create_index(name, table, [column], postgresql_where=where)


def downgrade() -> None:
    for name, table, _ in reversed(OWNING):
        op.drop_index(name, table_name=table)
