"""Files know what is doubtful in them, and reports on them are kept.

Revision ID: 6f0d3b8a2c71
Revises: 5f1c8a90d374
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "6f0d3b8a2c71"
down_revision = "5f1c8a90d374"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column and the table; files of before have no lint."""
    op.add_column("files", sa.Column("lint", postgresql.JSONB(), nullable=True))
    op.create_table(
        "file_reports",
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("validation_file_id", sa.Text(), nullable=False),
        sa.Column("report", postgresql.JSONB(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("file_id", "model", "validation_file_id"),
    )


def downgrade() -> None:
    """Take both away."""
    op.drop_table("file_reports")
    op.drop_column("files", "lint")
