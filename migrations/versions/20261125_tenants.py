"""Scopes and rotation of keys, what an organization may use, and who changed what.

Revision ID: d51f80a6c374
Revises: 6f0d3b8a2c71
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "d51f80a6c374"
down_revision = "6f0d3b8a2c71"
branch_labels = None
depends_on = None


LIMITS = ("max_running", "max_queued", "gpu_seconds_per_month", "max_stored_bytes")


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("scope", sa.Text(), nullable=False, server_default="write"))
    op.execute("UPDATE api_keys SET scope = 'admin' WHERE admin")
    op.drop_column("api_keys", "admin")
    op.add_column("api_keys", sa.Column("previous_digest", sa.LargeBinary()))
    op.add_column("api_keys", sa.Column("previous_until", sa.DateTime(timezone=True)))
    for limit in LIMITS:
        op.add_column("organizations", sa.Column(limit, sa.BigInteger()))
    op.create_table(
        "audit_events",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("organization_id", sa.Text(), sa.ForeignKey("organizations.id"), nullable=False),
        sa.Column("key_id", sa.Text()),
        sa.Column(
            "at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")
        ),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("ip", sa.Text()),
        sa.Column("request_id", sa.Text()),
        sa.Column("data", postgresql.JSONB(), nullable=False),
    )
    op.create_index("ix_audit_events_list", "audit_events", ["organization_id", "seq"])


def downgrade() -> None:
    op.drop_table("audit_events")
    for limit in LIMITS:
        op.drop_column("organizations", limit)
    op.drop_column("api_keys", "previous_until")
    op.drop_column("api_keys", "previous_digest")
    op.add_column(
        "api_keys", sa.Column("admin", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.execute("UPDATE api_keys SET admin = true WHERE scope = 'admin'")
    # Without scopes every key may write: one that only looks must not come to more by going back.
    op.execute("UPDATE api_keys SET revoked_at = now() WHERE scope = 'read' AND revoked_at IS NULL")
    op.drop_column("api_keys", "scope")
