"""What the installed environments are, and what reads the arguments of each."""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any

import structlog
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from app.environments.installed import installed

log = structlog.get_logger()
CHECKS = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


@dataclass(frozen=True)
class Kind:
    """An environment that is installed; what it needs besides may be missing here."""

    name: str
    summary: str
    arguments: TypeAdapter[Any]
    lacking: str | None

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of its arguments."""
        return self.arguments.json_schema()

    @property
    def defaults(self) -> dict[str, Any]:
        """Its arguments where a job says nothing of them."""
        fields = self.schema.get("properties", {})
        return {name: field["default"] for name, field in fields.items() if "default" in field}


@cache
def known() -> dict[str, Kind]:
    """Return the installed environments by name; one that cannot be read is logged and left out."""
    kinds = {}
    for name, entry in installed().items():
        try:
            kinds[name] = _kind(entry)
        except Exception:
            log.exception("environment.broken", environment=name, entry_point=entry.value)
    return kinds


def runnable() -> list[str]:
    """Return the names of those that can run on this machine."""
    return [name for name, kind in known().items() if kind.lacking is None]


def _kind(entry: EntryPoint) -> Kind:
    environment = entry.load()
    lacking = getattr(environment, "lacking", None)
    return Kind(
        name=entry.name,
        summary=environment.summary,
        arguments=TypeAdapter(checked(environment.Arguments, config=CHECKS, frozen=True)),
        lacking=lacking() if lacking else None,
    )
