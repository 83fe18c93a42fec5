"""What is said of a job gets a place in its stream, and whoever listens is told.

Metrics are numbered by a counter in the job's row; events by their sequence, drawn while the job's
row is locked. So of one job, what is committed later has the larger number.

Revision ID: 7a1d4e92c06b
Revises: d51f80a6c374
"""

import sqlalchemy as sa
from alembic import op

revision = "7a1d4e92c06b"
down_revision = "d51f80a6c374"
branch_labels = None
depends_on = None

# Not of a lease that is renewed, each second: it changes nothing that is shown.
SHOWN = (
    *("status", "attempt", "step", "total_steps", "metric_seq", "stop_requested", "retry_at"),
    *("fine_tuned_model", "model_deleted_at", "result_file_id"),
)
BEFORE, AFTER = (", ".join(f"{row}.{name}" for name in SHOWN) for row in ("OLD", "NEW"))
STATEMENTS = (
    """
    CREATE FUNCTION put_job_event_in_order() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM FROM jobs WHERE id = NEW.job_id FOR NO KEY UPDATE;
      NEW.seq := nextval('job_events_seq_seq');
      RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER in_order BEFORE INSERT ON job_events
    FOR EACH ROW EXECUTE FUNCTION put_job_event_in_order()
    """,
    """
    CREATE FUNCTION tell_of_job_events() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM pg_notify('basin_jobs', job_id) FROM (SELECT DISTINCT job_id FROM added) AS jobs;
      RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER tell AFTER INSERT ON job_events REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION tell_of_job_events()
    """,
    """
    CREATE FUNCTION tell_of_job() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM pg_notify('basin_jobs', NEW.id);
      RETURN NULL;
    END $$
    """,
    f"""
    CREATE TRIGGER tell AFTER UPDATE ON jobs FOR EACH ROW
    WHEN (({BEFORE}) IS DISTINCT FROM ({AFTER})) EXECUTE FUNCTION tell_of_job()
    """,
)


def upgrade() -> None:
    op.add_column(
        "jobs", sa.Column("metric_seq", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.add_column("metrics", sa.Column("seq", sa.BigInteger()))
    # What was measured before stands in the order of its steps. A change of type writes the table
    # once, where an UPDATE would leave every row twice.
    op.execute("ALTER TABLE metrics ALTER COLUMN seq TYPE bigint USING step")
    op.alter_column("metrics", "seq", nullable=False)
    op.execute(
        "UPDATE jobs SET metric_seq = last.seq"
        " FROM (SELECT job_id, max(seq) AS seq FROM metrics GROUP BY job_id) AS last"
        " WHERE last.job_id = jobs.id"
    )
    op.create_index("ix_metrics_seq", "metrics", ["job_id", "seq"])
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER tell ON jobs")
    op.execute("DROP TRIGGER tell ON job_events")
    op.execute("DROP TRIGGER in_order ON job_events")
    op.execute("DROP FUNCTION tell_of_job")
    op.execute("DROP FUNCTION tell_of_job_events")
    op.execute("DROP FUNCTION put_job_event_in_order")
    op.drop_index("ix_metrics_seq", table_name="metrics")
    op.drop_column("metrics", "seq")
    op.drop_column("jobs", "metric_seq")
