"""Organizations on the wire."""

from typing import Literal

from pydantic import BaseModel

from app.organizations.quotas import Used
from app.tables import Organization


class UsedOut(BaseModel):
    """How much of each limit is used now."""

    running: int
    queued: int
    gpu_seconds: float
    stored_bytes: int


class LimitsOut(BaseModel):
    """What an organization may use, null for no limit, and what it uses.

    GPU-seconds are those of the calendar month, in UTC; they begin anew at `resets_at`.
    """

    object: Literal["organization.limits"]
    organization_id: str
    max_running: int | None
    max_queued: int | None
    gpu_seconds_per_month: int | None
    max_stored_bytes: int | None
    used: UsedOut
    resets_at: int


def limits_out(organization: Organization, used: Used) -> LimitsOut:
    """Show an organization's limits on the wire."""
    return LimitsOut(
        object="organization.limits",
        organization_id=organization.id,
        max_running=organization.max_running,
        max_queued=organization.max_queued,
        gpu_seconds_per_month=organization.gpu_seconds_per_month,
        max_stored_bytes=organization.max_stored_bytes,
        used=UsedOut(
            running=used.running,
            queued=used.queued,
            gpu_seconds=round(used.gpu_seconds, 3),
            stored_bytes=used.stored_bytes,
        ),
        resets_at=int(used.resets_at.timestamp()),
    )
