"""`basin usage` and `basin audit`: what organizations used, and what was changed."""

import asyncio
import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from app import audit
from app.console import DEFAULT_DATA, AsJson, Data, out, print_json, refusals, settings_of
from app.db import connected
from app.organizations import service, usage
from app.organizations.quotas import GIB, HOUR_S
from app.organizations.usage import Month, Report
from app.settings import Settings
from app.tables import AuditEvent

Org = Annotated[str | None, typer.Option(help="One organization; all when left out.")]


def show_usage(
    *,
    month: Annotated[str | None, typer.Option(help="Such as 2026-11; this one by default.")] = None,
    org: Org = None,
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Show what each organization used in a month of UTC.

    Jobs are those submitted in it, by their status now; tokens are those of jobs that ended in it;
    bytes are those kept now.
    """
    with refusals():
        asked = Month.named(month) if month else None
        reports = asyncio.run(_reports(settings_of(data, Settings), org, asked))
    if as_json:
        print_json([_plain(name, report) for name, report in reports])
        return
    table = Table("organization", "month", "jobs", "GPU-hours", "trained tokens", "stored GiB")
    for name, report in reports:
        jobs = ", ".join(f"{count} {status}" for status, count in report.jobs.items() if count)
        table.add_row(
            name,
            str(report.month),
            jobs or "-",
            f"{report.gpu_seconds / HOUR_S:.2f}",
            f"{report.trained_tokens}",
            f"{report.stored_bytes / GIB:.2f}",
        )
    out.print(table)


def show_audit(
    *,
    org: Org = None,
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 50,
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Show the last changes: who did what to what. The operator has no key."""
    events = asyncio.run(_events(settings_of(data, Settings), org, limit))
    if as_json:
        print_json([_event(event, name) for event, name in events])
        return
    table = Table("when", "organization", "key", "action", "target", "from", "data")
    for event, name in events:
        told = json.dumps(event.data) if event.data else ""
        who = event.key_id or "operator"
        when = f"{event.at:%Y-%m-%d %H:%M:%S}"
        table.add_row(when, name, who, event.action, event.target, event.ip or "-", Text(told))
    out.print(table)


def _plain(name: str, report: Report) -> dict[str, object]:
    return {
        "organization": name,
        "month": str(report.month),
        "jobs": report.jobs,
        "gpu_seconds": round(report.gpu_seconds, 3),
        "trained_tokens": report.trained_tokens,
        "stored_bytes": report.stored_bytes,
    }


def _event(event: AuditEvent, name: str) -> dict[str, object]:
    return {
        "id": event.id,
        "at": event.at.isoformat(),
        "organization": name,
        "key_id": event.key_id,
        "action": event.action,
        "target": event.target,
        "ip": event.ip,
        "request_id": event.request_id,
        "data": event.data,
    }


async def _reports(
    settings: Settings, org: str | None, month: Month | None
) -> list[tuple[str, Report]]:
    async with connected(settings.database_url) as db, db.transaction() as tx:
        organizations = [await service.named(tx, org)] if org else await service.list_all(tx)
        return [(each.name, await usage.report(tx, each.id, month)) for each in organizations]


async def _events(settings: Settings, org: str | None, limit: int) -> list[tuple[AuditEvent, str]]:
    async with connected(settings.database_url) as db, db.transaction() as tx:
        return await audit.latest(tx, org, limit=limit)
