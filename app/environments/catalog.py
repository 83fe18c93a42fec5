"""What the installed environments are, and which arguments each takes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any

import structlog
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from app.environments.installed import installed
from app.errors import InvalidRequest

log = structlog.get_logger()
PARAM = "method.reinforcement.environment"
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


def check_arguments(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an environment, with what a job leaves out.

    Raises:
        InvalidRequest: there is no such environment, or it takes no such arguments.
    """
    kind = known().get(name)
    if kind is None:
        there = ", ".join(known()) or "none"
        raise InvalidRequest(
            f"No environment {name!r} is installed; there are: {there}.", param=f"{PARAM}.name"
        )
    try:
        found = kind.arguments.validate_json(json.dumps(args))
    except ValidationError as error:
        raise _refused(name, error) from error
    resolved: dict[str, Any] = kind.arguments.dump_python(found, mode="json")
    return resolved


def _kind(entry: EntryPoint) -> Kind:
    environment = entry.load()
    lacking = getattr(environment, "lacking", None)
    return Kind(
        name=entry.name,
        summary=environment.summary,
        arguments=TypeAdapter(checked(environment.Arguments, config=CHECKS, frozen=True)),
        lacking=lacking() if lacking else None,
    )


def _refused(name: str, error: ValidationError) -> InvalidRequest:
    problem = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, problem["loc"]))
    param = f"{PARAM}.args.{where}" if where else f"{PARAM}.args"
    if problem["type"] == "unexpected_keyword_argument":
        return InvalidRequest(f"The environment {name} takes no {where!r}.", param=param)
    return InvalidRequest(f"{param}: {problem['msg']}.", param=param)
