"""What an environment is set up with: checked where a job is asked for, before it waits."""

import json
from typing import Any

from pydantic import ValidationError

from app.environments.catalog import known
from app.errors import InvalidRequest

WHERE = "method.reinforcement.environment"


def check_arguments(name: str, args: dict[str, Any]) -> dict[str, Any]:
    """Return all the arguments of an environment: those that are given, and the usual others.

    Raises:
        InvalidRequest: none is called that, or one is not what it takes.
    """
    kinds = known()
    if name not in kinds:
        there = ", ".join(kinds) or "none"
        raise InvalidRequest(
            f"No environment {name!r} is installed; there are {there}.", param=f"{WHERE}.name"
        )
    adapter = kinds[name].arguments
    try:
        found = adapter.validate_json(json.dumps(args))  # as JSON, where an object is enough
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join([f"{WHERE}.args", *map(str, first["loc"])])
        message = f"Invalid value for '{where}': {first['msg']}."
        raise InvalidRequest(message, param=where) from error
    resolved: dict[str, Any] = adapter.dump_python(found, mode="json")
    return resolved
