"""Alembic's entry: runs the versions against the database it is given."""

from alembic import context
from sqlalchemy import create_engine, pool, text

from app.settings import Settings
from app.tables import Base

LOCK_TIMEOUT = "10s"


def run() -> None:
    """Migrate in one transaction a version; give up rather than queue behind a long lock."""
    url = context.config.attributes.get("database_url") or Settings().session_url
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.execute(text("SELECT pg_advisory_lock(7281901)"))  # one migration at a time
        connection.commit()
        context.configure(
            connection=connection, target_metadata=Base.metadata, transaction_per_migration=True
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
