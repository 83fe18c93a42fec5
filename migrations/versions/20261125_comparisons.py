"""Comparisons, and the jobs they are made of.

Revision ID: 4b9e27d0c8f1
Revises: 2f6b9d04c8e1
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "4b9e27d0c8f1"
down_revision = "2f6b9d04c8e1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "comparisons",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("organization_id", sa.Text(), sa.ForeignKey("organizations.id"), nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("body", postgresql.JSONB(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("now()"),
        ),
    )
    op.create_index("ix_comparisons_list", "comparisons", ["organization_id", "created_at", "id"])
    op.create_table(
        "comparison_jobs",
        sa.Column(
            "comparison_id",
            sa.Text(),
            sa.ForeignKey("comparisons.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("method", sa.BigInteger(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column(
            "job_id", sa.Text(), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False
        ),
        sa.PrimaryKeyConstraint("comparison_id", "method", "seed"),
    )
    op.create_index("ix_comparison_jobs_job", "comparison_jobs", ["job_id"], unique=True)


def downgrade() -> None:
    op.drop_table("comparison_jobs")
    op.drop_table("comparisons")
