"""Organizations on the wire."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.organizations.quotas import Used
from app.organizations.usage import Report
from app.paging import Listed
from app.schemas import NO_CONTROL, Asked
from app.tables import AuditEvent, Organization

Most = Annotated[int | None, Field(ge=0, lt=1 << 62)]


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


class CreateOrganization(Asked):
    """A tenant."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "acme"}})

    name: str = Field(min_length=1, max_length=256, pattern=NO_CONTROL)


class SetLimits(Asked):
    """What an organization may use: what is left out stays, and null lifts a limit."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"max_running": 2, "gpu_seconds_per_month": 360_000}},
    )

    max_running: Most = None
    max_queued: Most = None
    gpu_seconds_per_month: Most = None
    max_stored_bytes: Most = None


class OrganizationOut(Listed):
    """A tenant, with what it may use and what it uses."""

    object: Literal["organization"]
    name: str
    created_at: int
    limits: LimitsOut


class UsageOut(BaseModel):
    """What an organization used in a calendar month of UTC.

    Jobs are those submitted in it, by the status they have now; tokens are those of jobs that ended
    in it; bytes are those kept now. A slot of a CPU worker counts as a GPU.
    """

    object: Literal["organization.usage"]
    organization_id: str
    month: str
    jobs: dict[str, int]
    gpu_seconds: float
    trained_tokens: int
    stored_bytes: int


class ActorKeyOut(BaseModel):
    """The key that acted."""

    id: str


class ActorOut(BaseModel):
    """Who acted: a key, or the operator at the command line, who has none."""

    type: Literal["api_key", "operator"]
    api_key: ActorKeyOut | None
    ip_address: str | None


class AuditLogOut(Listed):
    """One change: what was done, to what, by whom."""

    object: Literal["organization.audit_log"]
    type: str
    effective_at: int
    actor: ActorOut
    target: str
    request_id: str | None
    data: dict[str, Any]


def usage_out(organization_id: str, report: Report) -> UsageOut:
    """Show a report on the wire."""
    return UsageOut(
        object="organization.usage",
        organization_id=organization_id,
        month=str(report.month),
        jobs=report.jobs,
        gpu_seconds=round(report.gpu_seconds, 3),
        trained_tokens=report.trained_tokens,
        stored_bytes=report.stored_bytes,
    )


def audit_log_out(event: AuditEvent) -> AuditLogOut:
    """Show a change on the wire."""
    return AuditLogOut(
        id=event.id,
        object="organization.audit_log",
        type=event.action,
        effective_at=int(event.at.timestamp()),
        actor=ActorOut(
            type="api_key" if event.key_id else "operator",
            api_key=ActorKeyOut(id=event.key_id) if event.key_id else None,
            ip_address=event.ip,
        ),
        target=event.target,
        request_id=event.request_id,
        data=event.data,
    )


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


def organization_out(organization: Organization, used: Used) -> OrganizationOut:
    """Show an organization on the wire, to its operator."""
    return OrganizationOut(
        id=organization.id,
        object="organization",
        name=organization.name,
        created_at=int(organization.created_at.timestamp()),
        limits=limits_out(organization, used),
    )
