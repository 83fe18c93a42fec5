"""Writes lines into a job's story."""

from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

from app.ids import new_id
from app.tables import JobEvent, Json

Level = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics"]


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
