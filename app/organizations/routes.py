"""/v1/organization"""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncSession

from app import audit
from app.organizations import quotas, service, usage
from app.organizations.schemas import (
    AuditLogOut,
    LimitsOut,
    UsageOut,
    audit_log_out,
    limits_out,
    usage_out,
)
from app.organizations.usage import MONTH, Month
from app.paging import ListOut, list_out
from app.web import Admin, After, Caller, Limit, Tx

router = APIRouter(prefix="/v1/organization", tags=["organization"])
Action = Annotated[str, Field(pattern=r"^[a-z_]+\.[a-z_]+$", examples=["job.created"])]
InMonth = Annotated[
    str | None,
    Query(
        description="Such as 2026-11; this one by default.",
        json_schema_extra={"pattern": f"^{MONTH}$"},
    ),
]


@router.get("/limits", response_model=LimitsOut)
async def get_limits(tx: Tx, caller: Admin) -> LimitsOut:
    """Show what your organization may use, and what it uses. The operator sets it."""
    organization = await service.get(tx, caller.organization_id)
    return limits_out(organization, await quotas.used(tx, caller.organization_id))


@router.get("/usage", response_model=UsageOut)
async def get_usage(
    tx: Tx,
    caller: Caller,
    month: InMonth = None,
) -> UsageOut:
    """Show what your organization used in a month."""
    return await used_in(tx, caller.organization_id, month)


async def used_in(tx: AsyncSession, organization_id: str, month: str | None) -> UsageOut:
    """Return what an organization used in a month of a name such as 2026-11, or in this one.

    Raises:
        InvalidRequest: it names none.
    """
    asked = None if month is None else Month.named(month)
    return usage_out(organization_id, await usage.report(tx, organization_id, asked))


@router.get("/audit_logs", response_model=ListOut[AuditLogOut])
async def list_audit_logs(
    tx: Tx,
    caller: Admin,
    *,
    action: Annotated[list[Action] | None, Query(description="May stand several times.")] = None,
    after: After = None,
    limit: Limit = 20,
) -> ListOut[AuditLogOut]:
    """List what was changed in your organization and by whom, newest first."""
    page = await audit.list_events(
        tx, caller.organization_id, actions=action or [], after=after, limit=limit
    )
    return list_out([audit_log_out(event) for event in page.data], has_more=page.has_more)
