"""What goes to the process that sends, on its standard input, and what it says in the end."""

import sys
from typing import Any

from pydantic import BaseModel, ConfigDict


class Batch(BaseModel):
    """Some steps of a job's metrics; `status` is set with the last ones."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    organization: str
    run: dict[str, Any]
    config: dict[str, Any]
    steps: list[tuple[int, dict[str, float]]]
    status: str | None


class Sent(BaseModel):
    """Where the run can be seen."""

    url: str | None


def read() -> Batch:
    """Read the batch that this process was given."""
    return Batch.model_validate_json(sys.stdin.buffer.read())


def answer(url: str | None) -> None:
    """Say that all was sent; the last line of the output."""
    print(f"\n{Sent(url=url).model_dump_json()}", flush=True)
