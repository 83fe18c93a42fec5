"""`basin orgs`: which tenants there are, and what each may use."""

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from app.audit import Actor
from app.console import DEFAULT_DATA, AsJson, Data, out, print_json, refusals, settings_of
from app.db import connected
from app.organizations import quotas, service
from app.organizations.quotas import GIB, HOUR_S, Used
from app.settings import Settings
from app.tables import Organization

app = typer.Typer(help="List organizations, and set what each may use.", no_args_is_help=True)

LIFTED = "none"


@app.command("list")
def list_organizations(*, as_json: AsJson = False, data: Data = DEFAULT_DATA) -> None:
    """List every organization, with what it uses of what it may; - is no limit."""
    found = asyncio.run(_all(settings_of(data, Settings)))
    if as_json:
        print_json([_plain(organization, used) for organization, used in found])
        return
    table = Table("organization", "id", "running", "queued", "GPU-hours this month", "stored GiB")
    for organization, used in found:
        table.add_row(organization.name, organization.id, *_shares(organization, used))
    out.print(table)


@app.command("show")
def show_organization(name: str, *, as_json: AsJson = False, data: Data = DEFAULT_DATA) -> None:
    """Show what one organization uses of what it may."""
    with refusals():
        found = asyncio.run(_one(settings_of(data, Settings), name))
    _show(*found, as_json=as_json)


@app.command("set")
def set_limits(
    name: str,
    *,
    max_running: Annotated[str | None, typer.Option(help="Jobs that run at once.")] = None,
    max_queued: Annotated[str | None, typer.Option(help="Jobs that wait.")] = None,
    gpu_hours_per_month: Annotated[
        str | None, typer.Option(help="Hours times devices, in a calendar month of UTC.")
    ] = None,
    max_stored_gib: Annotated[
        str | None, typer.Option(help="Files, adapters and checkpoints; checked at uploads.")
    ] = None,
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Set what an organization may use; "none" lifts a limit, and what is left out stays."""
    asked = {
        "max_running": (max_running, 1),
        "max_queued": (max_queued, 1),
        "gpu_seconds_per_month": (gpu_hours_per_month, HOUR_S),
        "max_stored_bytes": (max_stored_gib, GIB),
    }
    limits = {
        column: _units(given, unit) for column, (given, unit) in asked.items() if given is not None
    }
    with refusals():
        changed = asyncio.run(_set(settings_of(data, Settings), name, limits))
    _show(*changed, as_json=as_json)


def _units(given: str, unit: int) -> int | None:
    if given == LIFTED:
        return None
    try:
        amount = float(given) * unit
        if not 0 <= amount < 1 << 62 or (unit == 1 and amount != int(amount)):
            raise ValueError(given)
    except ValueError as error:
        message = f"{given!r} is no number from 0 up; write {LIFTED!r} for no limit."
        raise typer.BadParameter(message) from error
    return int(amount)


def _show(organization: Organization, used: Used, *, as_json: bool) -> None:
    if as_json:
        print_json(_plain(organization, used))
        return
    names = ("running", "queued", "GPU-hours this month", "stored GiB")
    out.print(f"{organization.name} ({organization.id})", markup=False, highlight=False)
    for name, share in zip(names, _shares(organization, used), strict=True):
        out.print(f"  {name}: {share}", markup=False, highlight=False)


def _plain(organization: Organization, used: Used) -> dict[str, object]:
    """Return what is used and what may be, in the units of the database; null is no limit."""
    may = {
        "running": organization.max_running,
        "queued": organization.max_queued,
        "gpu_seconds": organization.gpu_seconds_per_month,
        "stored_bytes": organization.max_stored_bytes,
    }
    return {
        "id": organization.id,
        "name": organization.name,
        "used": asdict(used),
        "limits": may,
    }


def _shares(organization: Organization, used: Used) -> tuple[str, ...]:
    return (
        _share(used.running, organization.max_running),
        _share(used.queued, organization.max_queued),
        _share(used.gpu_seconds, organization.gpu_seconds_per_month, unit=HOUR_S),
        _share(used.stored_bytes, organization.max_stored_bytes, unit=GIB),
    )


def _share(used: float, most: int | None, *, unit: int = 1) -> str:
    decimals = 0 if unit == 1 else 2
    limit = "-" if most is None else f"{most / unit:.{decimals}f}"
    return f"{used / unit:.{decimals}f} / {limit}"


async def _all(settings: Settings) -> list[tuple[Organization, Used]]:
    async with connected(settings.database_url) as db, db.transaction() as tx:
        return [
            (organization, await quotas.used(tx, organization.id))
            for organization in await service.list_all(tx)
        ]


async def _one(settings: Settings, name: str) -> tuple[Organization, Used]:
    async with connected(settings.database_url) as db, db.transaction() as tx:
        organization = await service.named(tx, name)
        return organization, await quotas.used(tx, organization.id)


async def _set(
    settings: Settings, name: str, limits: dict[str, int | None]
) -> tuple[Organization, Used]:
    async with connected(settings.database_url) as db, db.transaction() as tx:
        organization = await service.named(tx, name)
        await service.set_limits(tx, organization, limits, Actor(organization.id))
        return organization, await quotas.used(tx, organization.id)
