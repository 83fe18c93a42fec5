"""What a key may do, and the secret it had before its rotation.

Revision ID: d51f80a6c374
Revises: b7d40c1e9f26
"""

import sqlalchemy as sa
from alembic import op

revision = "d51f80a6c374"
down_revision = "b7d40c1e9f26"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("scope", sa.Text(), nullable=False, server_default="write"))
    op.add_column("api_keys", sa.Column("previous_digest", sa.LargeBinary()))
    op.add_column("api_keys", sa.Column("previous_until", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("api_keys", "previous_until")
    op.drop_column("api_keys", "previous_digest")
    op.drop_column("api_keys", "scope")
