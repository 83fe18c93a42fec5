"""What a key may do, the secret it had before its rotation, and what an organization may use.

Revision ID: d51f80a6c374
Revises: b7d40c1e9f26
"""

import sqlalchemy as sa
from alembic import op

revision = "d51f80a6c374"
down_revision = "b7d40c1e9f26"
branch_labels = None
depends_on = None


LIMITS = ("max_running", "max_queued", "gpu_seconds_per_month", "max_stored_bytes")


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("scope", sa.Text(), nullable=False, server_default="write"))
    op.add_column("api_keys", sa.Column("previous_digest", sa.LargeBinary()))
    op.add_column("api_keys", sa.Column("previous_until", sa.DateTime(timezone=True)))
    for limit in LIMITS:
        op.add_column("organizations", sa.Column(limit, sa.BigInteger()))


def downgrade() -> None:
    for limit in LIMITS:
        op.drop_column("organizations", limit)
    op.drop_column("api_keys", "previous_until")
    op.drop_column("api_keys", "previous_digest")
    op.drop_column("api_keys", "scope")
