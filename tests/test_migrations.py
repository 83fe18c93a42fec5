"""The migrations and the tables say the same."""

from alembic import command
from alembic.script import ScriptDirectory

from app.embedded import Services
from app.migrate import alembic_config


def test_there_is_one_head(services: Services):
    script = ScriptDirectory.from_config(alembic_config(services.database_url))

    assert len(script.get_heads()) == 1


def test_no_table_lacks_a_migration(services: Services):
    command.check(alembic_config(services.database_url))


def test_down_and_up_again_works(services: Services):
    import psycopg
    from sqlalchemy.engine import make_url

    url = make_url(services.database_url)
    admin = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("CREATE DATABASE updown")
    config = alembic_config(url.set(database="updown").render_as_string(hide_password=False))

    command.upgrade(config, "head")
    command.downgrade(config, "base")
    command.upgrade(config, "head")
