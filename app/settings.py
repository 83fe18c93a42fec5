"""The only reader of the environment."""

import os
from functools import cached_property
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1 << 20


class Settings(BaseSettings):
    """What an operator sets, as BASIN_… in the environment; all that a worker needs."""

    model_config = SettingsConfigDict(env_prefix="BASIN_", frozen=True, extra="ignore")

    database_url: str = Field(description="postgresql+psycopg://user:password@host/name")
    redis_url: str = Field(description="redis://host:6379/0, or unix:///path/to/socket")
    data_dir: Path = Field(default=Path(".basin"), description="run folders of a worker")
    models_dir: Path | None = Field(default=None, description="folder of base models")
    hub_models: str = Field(default="", description="comma-separated hub ids, org/name[@revision]")
    devices: str = Field(default="auto", description="auto, cpu, cpu,cpu or GPU indices: 0,1")

    @cached_property
    def hub_revisions(self) -> dict[str, str | None]:
        """The operator's hub models: id → pinned revision."""
        entries = [entry.strip() for entry in self.hub_models.split(",") if entry.strip()]
        pairs = [entry.partition("@") for entry in entries]
        return {name: revision or None for name, _, revision in pairs}


class ApiSettings(Settings):
    """What the API needs besides; a worker never learns the pepper."""

    key_pepper: SecretStr = Field(
        min_length=16, description="secret that key digests are made with"
    )
    max_file_bytes: int = Field(default=512 * MIB, gt=0)


def inherited_environment() -> dict[str, str]:
    """Return a copy of this process's environment, for its children."""
    return dict(os.environ)
