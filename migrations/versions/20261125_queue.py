"""How long the last jobs ran is found by an index: the wait in the queue follows from it.

Revision ID: 8c2e6d7a4b10
Revises: 5b1f0c2d9e47
"""

import sqlalchemy as sa
from alembic import op

revision = "8c2e6d7a4b10"
down_revision = "5b1f0c2d9e47"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_jobs_succeeded",
        "jobs",
        ["finished_at"],
        postgresql_where=sa.text("status = 'succeeded'"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_succeeded", table_name="jobs")
