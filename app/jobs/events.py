"""Writes lines into a job's story."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from app.ids import new_id
from app.tables import JobEvent, Json

Level = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics"]

# All lines in one parameter: a statement of many rows takes as long to write as to execute.
_ADD = text(
    """
    INSERT INTO job_events (id, job_id, level, message, type, data)
    SELECT line->>'id', :job_id, line->>'level', line->>'message', line->>'type', line->'data'
    FROM jsonb_array_elements(:lines) WITH ORDINALITY AS told (line, place) ORDER BY place
    """
).bindparams(bindparam("lines", type_=JSONB))


@dataclass(frozen=True)
class Told:
    """A line of a job's story."""

    message: str
    level: Level = "info"
    type: EventType = "message"
    data: Json = field(default_factory=dict)


async def add_all(tx: AsyncSession, job_id: str, told: Sequence[Told]) -> None:
    """Append events in this transaction, in their order."""
    lines = [{"id": new_id("ftevent-"), **vars(each)} for each in told]
    if lines:
        await tx.execute(_ADD, {"job_id": job_id, "lines": lines})


def add(
    tx: AsyncSession,
    job_id: str,
    message: str,
    *,
    level: Level = "info",
    type: EventType = "message",  # noqa: A002  the wire's word
    data: Json | None = None,
) -> None:
    """Append an event in this transaction."""
    tx.add(
        JobEvent(
            id=new_id("ftevent-"),
            job_id=job_id,
            level=level,
            message=message,
            type=type,
            data=data or {},
        )
    )
