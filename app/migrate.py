"""Brings a database to the newest schema."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory


def alembic_config(database_url: str) -> Config:
    """Return Alembic's settings for the migrations that lie beside the packages."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations"))
    config.attributes["database_url"] = database_url
    return config


def upgrade(database_url: str) -> str:
    """Apply every migration that the database lacks; return the newest one's name."""
    config = alembic_config(database_url)
    command.upgrade(config, "head")
    return str(ScriptDirectory.from_config(config).get_current_head())
