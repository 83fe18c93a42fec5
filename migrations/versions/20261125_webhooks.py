"""Webhooks: endpoints, the outbox of their messages, and every try at one.

Revision ID: 91c4e2b70d58
Revises: 7a1d4e92c06b
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "91c4e2b70d58"
down_revision = "7a1d4e92c06b"
branch_labels = None
depends_on = None


def _at(name: str, *, nullable: bool = False, default: bool = True) -> sa.Column[object]:
    now = sa.text("now()") if default and not nullable else None
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=now)


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("organization_id", sa.Text(), sa.ForeignKey("organizations.id"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event_types", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("secret_hint", sa.Text(), nullable=False),
        sa.Column("previous_secret", sa.LargeBinary()),
        _at("previous_until", nullable=True),
        _at("created_at"),
        _at("updated_at"),
        _at("disabled_at", nullable=True),
        sa.Column("disabled_reason", sa.Text()),
    )
    op.create_index(
        "ix_webhook_endpoints_list", "webhook_endpoints", ["organization_id", "created_at", "id"]
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "endpoint_id",
            sa.Text(),
            sa.ForeignKey("webhook_endpoints.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("organization_id", sa.Text(), sa.ForeignKey("organizations.id"), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, server_default="pending"),
        sa.Column("attempts", sa.BigInteger(), nullable=False, server_default="0"),
        _at("created_at"),
        _at("next_at"),
        _at("gives_up_at", default=False),
    )
    op.create_index("ix_webhook_deliveries_list", "webhook_deliveries", ["endpoint_id", "seq"])
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["next_at"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "ix_webhook_deliveries_over",
        "webhook_deliveries",
        ["created_at"],
        postgresql_where=sa.text("state <> 'pending'"),
    )
    op.create_table(
        "webhook_attempts",
        sa.Column(
            "delivery_id",
            sa.Text(),
            sa.ForeignKey("webhook_deliveries.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("number", sa.BigInteger(), nullable=False),
        _at("at"),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("status_code", sa.BigInteger()),
        sa.Column("error", sa.Text()),
        sa.Column("response", sa.Text()),
        sa.PrimaryKeyConstraint("delivery_id", "number"),
    )


def downgrade() -> None:
    op.drop_table("webhook_attempts")
    op.drop_table("webhook_deliveries")
    op.drop_table("webhook_endpoints")
