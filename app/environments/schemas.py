"""Environments on the wire."""

from collections.abc import Sequence
from typing import Any, Literal

from app.environments.catalog import Kind
from app.paging import Listed
from app.workers.service import Node


class EnvironmentOut(Listed):
    """An environment that agents can learn in: its `id` is the name that a job gives.

    `arguments` is a JSON schema, and `defaults` what holds of them when a job says nothing;
    `workers` are those, alive now, that it runs on.
    """

    object: Literal["environment"]
    summary: str
    arguments: dict[str, Any]
    defaults: dict[str, Any]
    workers: list[str]


def environment_out(kind: Kind, nodes: Sequence[Node]) -> EnvironmentOut:
    """Show an environment, with the workers that offer it."""
    return EnvironmentOut(
        id=kind.name,
        object="environment",
        summary=kind.summary,
        arguments=kind.schema,
        defaults=kind.defaults,
        workers=[node.id for node in nodes if kind.name in node.environments],
    )
