"""Rollouts of runs by reinforcement, to look at.

Revision ID: e1a4c07d92b6
Revises: c8d25e7f1b03
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "e1a4c07d92b6"
down_revision = "c8d25e7f1b03"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rollouts",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column(
            "job_id", sa.Text(), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("index", sa.BigInteger(), nullable=False),
        sa.Column("reward", sa.Double(), nullable=False),
        sa.Column("success", sa.Boolean()),
        sa.Column("failure", sa.Text()),
        sa.Column("turns", postgresql.JSONB(), nullable=False),
        sa.Column("sampled_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_rollouts_step", "rollouts", ["job_id", "step", "index"], unique=True)


def downgrade() -> None:
    op.drop_table("rollouts")
