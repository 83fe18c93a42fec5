"""Models can be tried: a question to one, and what was answered so far.

Revision ID: 3e9b71c5d248
Revises: 94e0b7d3f5a2
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "3e9b71c5d248"
down_revision = "94e0b7d3f5a2"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "previews",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("organization_id", sa.Text(), sa.ForeignKey("organizations.id"), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("blob_id", sa.Text()),
        sa.Column("question", postgresql.JSONB(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, server_default="waiting"),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("now()"),
        ),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("worker", sa.Text()),
        sa.Column("beat_at", sa.DateTime(timezone=True)),
        sa.Column("text", sa.Text(), nullable=False, server_default=""),
        sa.Column("finish_reason", sa.Text()),
        sa.Column("prompt_tokens", sa.BigInteger()),
        sa.Column("completion_tokens", sa.BigInteger()),
        sa.Column("error_code", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("error_param", sa.Text()),
    )
    op.create_index(
        "ix_previews_waiting",
        "previews",
        ["created_at"],
        postgresql_where=sa.text("state = 'waiting'"),
    )
    op.create_index(
        "ix_previews_live",
        "previews",
        ["organization_id"],
        postgresql_where=sa.text("state IN ('waiting', 'running')"),
    )
    op.create_index("ix_previews_age", "previews", ["created_at"])


def downgrade() -> None:
    op.drop_table("previews")
