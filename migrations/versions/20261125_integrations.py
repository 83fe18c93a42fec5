"""Integrations: keys of other services, and what was sent there of each job's metrics.

Revision ID: 2f6b9d04c8e1
Revises: 91c4e2b70d58
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2f6b9d04c8e1"
down_revision = "91c4e2b70d58"
branch_labels = None
depends_on = None


def upgrade() -> None:
    now = sa.text("now()")
    op.add_column("jobs", sa.Column("integrations", postgresql.JSONB()))
    op.create_table(
        "integration_keys",
        sa.Column("organization_id", sa.Text(), sa.ForeignKey("organizations.id"), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("last4", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("organization_id", "type"),
    )
    op.create_table(
        "forwards",
        sa.Column(
            "job_id", sa.Text(), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), sa.ForeignKey("organizations.id"), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, server_default="pending"),
        sa.Column("step", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("attempt", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("failures", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("url", sa.Text()),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("job_id", "target"),
    )
    op.create_index(
        "ix_forwards_due",
        "forwards",
        ["next_at"],
        postgresql_where=sa.text("state = 'pending'"),
    )


def downgrade() -> None:
    op.drop_table("forwards")
    op.drop_table("integration_keys")
    op.drop_column("jobs", "integrations")
