"""The only reader of the environment."""

import os
from functools import cached_property
from pathlib import Path
from typing import Literal, cast, get_args

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.addresses import Inside
from app.jobs.spec import Task
from app.logs import LogFormat

MIB = 1 << 20
MIN_SECRET = 16
GAMES_DIR = "BASIN_GAMES_DIR"


class Settings(BaseSettings):
    """What an operator sets, as BASIN_… in the environment; all that a worker needs."""

    model_config = SettingsConfigDict(
        env_prefix="BASIN_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    database_url: str = Field(description="postgresql+psycopg://user:password@host/name")
    direct_database_url: str | None = Field(
        default=None,
        description="past a pooler of transactions: where the API listens, and migrations run",
    )
    redis_url: str = Field(description="redis://host:6379/0, or unix:///path/to/socket")
    data_dir: Path = Field(default=Path(".basin"), description="run folders of a worker")
    max_resume_bytes: int = Field(
        default=16 * 1024 * MIB,
        ge=0,
        description="largest checkpoint kept in the database for another worker to carry on from",
    )
    models_dir: Path | None = Field(default=None, description="folder of base models")
    games_dir: Path | None = Field(
        default=None,
        description="folder of the games that agents learn in; each environment has one in it",
    )
    hub_models: str = Field(
        default="", description="comma-separated hub ids, org/name[@revision][:task]"
    )
    devices: str = Field(default="auto", description="auto, cpu, cpu,cpu or GPU indices: 0,1")
    log_format: LogFormat = Field(
        default="auto", description="json, console, or auto: console on a terminal"
    )
    otlp_endpoint: str | None = Field(
        default=None,
        validation_alias=AliasChoices("otlp_endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="where traces go over HTTP, such as http://localhost:4318; unset: nowhere",
    )
    file_retention_days: int | None = Field(
        default=None, gt=0, description="files older than this are deleted; unset keeps them"
    )
    resume_retention_days: int = Field(
        default=30, gt=0, description="a paused job can be carried on exactly for so long"
    )

    warm_trainers: bool = Field(
        default=True,
        description="keep a process for each device that waits for its next run with everything"
        " imported",
    )

    preview: Literal["cpu", "cuda", "auto", "off"] = Field(
        default="cpu", description="where models are tried: cpu, cuda, auto (a GPU if any) or off"
    )
    preview_cache_bytes: int = Field(
        default=8 * 1024 * MIB, gt=0, description="most that the models being tried take in memory"
    )
    preview_threads: int = Field(default=2, gt=0, description="CPU threads of a preview")

    @property
    def session_url(self) -> str:
        """Where a connection stays the same one from one transaction to the next."""
        return self.direct_database_url or self.database_url

    @property
    def runs_dir(self) -> Path:
        return self.data_dir / "runs"

    @property
    def previews_dir(self) -> Path:
        return self.data_dir / "previews"

    @cached_property
    def hub_revisions(self) -> dict[str, str | None]:
        """The operator's hub models: id → pinned revision."""
        pairs = [entry.partition(":")[0].partition("@") for entry in self._hub_entries()]
        return {name: revision or None for name, _, revision in pairs}

    @cached_property
    def hub_tasks(self) -> dict[str, Task]:
        """What the operator's hub models do, where it is written: id → task."""
        pairs = [entry.partition(":") for entry in self._hub_entries()]
        return {name.partition("@")[0]: cast(Task, task) for name, _, task in pairs if task}

    def _hub_entries(self) -> list[str]:
        return [entry.strip() for entry in self.hub_models.split(",") if entry.strip()]

    @field_validator("hub_models")
    @classmethod
    def _knows_tasks(cls, value: str) -> str:
        asked = [entry.partition(":")[2].strip() for entry in value.split(",")]
        if unknown := sorted({task for task in asked if task} - set(get_args(Task))):
            known = ", ".join(get_args(Task))
            raise ValueError(f"a hub model's task is one of {known}, not {unknown[0]!r}")
        return value


class ApiSettings(Settings):
    """What the API needs besides; a worker never learns the pepper."""

    key_pepper: SecretStr = Field(
        min_length=MIN_SECRET, description="secret that key digests are made with"
    )
    secrets_key: SecretStr | None = Field(
        default=None,
        description="what webhook secrets and integration keys are sealed with; several with commas"
        " between: the first seals, all open. Without it they are sealed with the pepper",
    )
    webhook_allow: str = Field(
        default="",
        description="comma-separated inside networks that webhooks may reach, such as 10.1.0.0/16;"
        " http://10.1.0.0/16 permits plain HTTP there too",
    )
    mlflow_tracking_uri: str | None = Field(
        default=None, description="MLflow server that every job's metrics are sent to"
    )
    wandb_base_url: str | None = Field(
        default=None, description="a Weights & Biases server of your own; theirs when unset"
    )
    max_file_bytes: int = Field(default=512 * MIB, gt=0)
    requests_per_minute: int = Field(
        default=600, ge=0, description="of one key, and as many at once; 0 counts none"
    )
    metrics_token: SecretStr | None = Field(
        default=None, min_length=16, description="what Prometheus sends to read /metrics"
    )
    client_timeout_s: float = Field(
        default=30, gt=0, description="how long a client may keep silent in what it has begun"
    )
    max_connections: int = Field(default=900, gt=0, description="of one API process")
    streams_per_caller: int = Field(
        default=16, gt=0, description="uploads and downloads of one key at once, in one API process"
    )
    streams: int = Field(default=64, gt=0, description="and of all keys")
    watchers_per_caller: int = Field(
        default=512, gt=0, description="event streams of one key at once, in one API process"
    )
    watchers: int = Field(default=800, gt=0, description="and of all keys")
    preview_max_tokens: int = Field(
        default=256, gt=0, description="most tokens that a preview answers with"
    )
    preview_timeout_s: int = Field(
        default=120, gt=0, description="seconds from asking for a preview to its end"
    )
    preview_max_live: int = Field(
        default=4, gt=0, description="previews of one organization that wait or run at once"
    )
    max_upload_bytes: int = Field(
        default=8 * 1024 * MIB, gt=0, description="largest file that comes in parts"
    )

    @property
    def sealing_keys(self) -> list[str]:
        """What secrets are sealed with, and after it what they may have been sealed with before."""
        given = self.secrets_key.get_secret_value().split(",") if self.secrets_key else []
        return [*(key.strip() for key in given if key.strip()), self.key_pepper.get_secret_value()]

    @cached_property
    def webhook_networks(self) -> Inside:
        """The operator's own networks that webhooks may reach."""
        return Inside.parse(self.webhook_allow)

    @field_validator("secrets_key")
    @classmethod
    def _is_long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        keys = [key.strip() for key in value.get_secret_value().split(",")] if value else []
        if any(0 < len(key) < MIN_SECRET for key in keys):
            raise ValueError(f"each key has at least {MIN_SECRET} characters: openssl rand -hex 32")
        return value

    @field_validator("webhook_allow")
    @classmethod
    def _names_networks(cls, value: str) -> str:
        Inside.parse(value)
        return value


def mistakes(error: ValidationError) -> list[str]:
    """Return what is wrong with the settings, a line each, without what was given."""
    return [
        f"BASIN_{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg']}"
        for problem in error.errors(include_input=False)
    ]


def inherited_environment() -> dict[str, str]:
    """Return a copy of this process's environment, for its children."""
    return dict(os.environ)


def inherited_games_dir() -> Path | None:
    """Return the folder of games, for a process of an environment, which knows no settings."""
    return Path(found) if (found := os.environ.get(GAMES_DIR)) else None
