"""`basin webhooks`: who is told when a job ends."""

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from app import egress
from app.audit import Actor
from app.console import (
    DEFAULT_DATA,
    AsJson,
    Data,
    out,
    print_json,
    refusals,
    say_rows,
    say_secret,
    settings_of,
)
from app.db import connected
from app.egress import Unreachable
from app.organizations import service as organizations
from app.settings import ApiSettings, Settings
from app.vault import Vault
from app.webhooks import outbox, service
from app.webhooks.outbox import Result
from app.webhooks.schemas import Target, delivery_out
from app.webhooks.sender import Sender
from app.webhooks.service import Logged

COLUMNS = ("endpoint", "organization", "name", "url", "told of", "state")
app = typer.Typer(
    help="Tell others when a job ends, and see what became of it.", no_args_is_help=True
)


@app.command("create")
def create_endpoint(
    url: Annotated[str, typer.Argument(help="https://…, on a public address.")],
    *,
    org: Annotated[str, typer.Option(help="The organization whose jobs are told of.")] = "default",
    name: Annotated[str, typer.Option(help="What the endpoint is called in lists.")] = "unnamed",
    event: Annotated[
        list[str] | None,
        typer.Option(help="succeeded, failed or cancelled; repeatable, all when left out."),
    ] = None,
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Add an endpoint and print the secret its messages are signed with; it is shown this once."""
    known = {str(status): event_type for status, event_type in outbox.EVENT_TYPES.items()}
    unknown = sorted(set(event or ()) - set(known))
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}.")
    event_types = [known[each] for each in event or known]
    settings = settings_of(data, ApiSettings)
    with refusals():
        made = asyncio.run(_create(settings, org, name=name, url=url, event_types=event_types))
    say_secret("secret", made, as_json=as_json)


@app.command("list")
def list_endpoints(*, as_json: AsJson = False, data: Data = DEFAULT_DATA) -> None:
    """List endpoints, without their secrets."""
    rows = asyncio.run(_rows(settings_of(data, Settings)))
    say_rows(COLUMNS, rows, as_json=as_json)


@app.command("deliveries")
def list_deliveries(
    endpoint_id: str,
    *,
    limit: Annotated[int, typer.Option(help="How many of the last ones.", min=1)] = 20,
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Show the last messages to an endpoint, newest first, with every try at them."""
    with refusals():
        found = asyncio.run(_deliveries(settings_of(data, Settings), endpoint_id, limit))
    if as_json:
        print_json([delivery_out(logged).model_dump() for logged in found])
        return
    table = Table("message", "event", "state", "next try", "tries")
    for logged in found:
        delivery = logged.delivery
        pending = delivery.state == outbox.PENDING
        next_try = f"{delivery.next_at:%Y-%m-%d %H:%M:%S}" if pending else ""
        tries = "\n".join(_tried(logged))
        table.add_row(delivery.id, delivery.event_type, delivery.state, next_try, escape(tries))
    out.print(table)


@app.command("test")
def test_endpoint(endpoint_id: str, *, as_json: AsJson = False, data: Data = DEFAULT_DATA) -> None:
    """Send a message about no job, once; exits 1 when it is not taken."""
    with refusals():
        result = asyncio.run(_test(settings_of(data, ApiSettings), endpoint_id))
    if as_json:
        print_json({**asdict(result), "taken": result.taken})
    else:
        out.print(result.error or f"It answered {result.status_code}.", markup=False)
    if not result.taken:
        raise typer.Exit(1)


@app.command("rotate")
def rotate_secret(
    endpoint_id: str,
    *,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Sign with the old secret too, for 24 hours.")
    ] = False,
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Give an endpoint a new secret and print it."""
    with refusals():
        settings = settings_of(data, ApiSettings)
        secret = asyncio.run(_rotate(settings, endpoint_id, keep_old=keep_old))
    say_secret("secret", secret, as_json=as_json)


@app.command("delete")
def delete_endpoint(
    endpoint_id: str, *, as_json: AsJson = False, data: Data = DEFAULT_DATA
) -> None:
    """Forget an endpoint, with what waits for it and its log."""
    with refusals():
        asyncio.run(_delete(settings_of(data, Settings), endpoint_id))
    if as_json:
        print_json({"id": endpoint_id, "deleted": True})
    else:
        out.print(f"{endpoint_id} deleted")


def _tried(logged: Logged) -> list[str]:
    return [
        f"{attempt.at:%Y-%m-%d %H:%M:%S} {attempt.error or attempt.status_code}"
        for attempt in logged.attempts
    ]


async def _create(
    settings: ApiSettings, org: str, *, name: str, url: str, event_types: list[str]
) -> str:
    try:
        target = str(Target.validate_python(url))
        await egress.check(target, settings.webhook_networks)
    except (ValueError, Unreachable) as error:
        raise typer.BadParameter(str(error)) from error
    async with connected(settings.database_url) as db, db.transaction() as tx:
        owner = await organizations.named(tx, org)
        made = await service.create(
            tx,
            Actor(owner.id),
            name=name,
            url=target,
            event_types=event_types,
            vault=Vault(settings.sealing_keys),
        )
    return made.secret


async def _rows(settings: Settings) -> list[tuple[str, ...]]:
    async with connected(settings.database_url) as db, db.transaction() as tx:
        return [
            (
                endpoint.id,
                organization,
                endpoint.name,
                endpoint.url,
                ", ".join(each.rpartition(".")[2] for each in endpoint.event_types),
                endpoint.disabled_reason or "enabled",
            )
            for endpoint, organization in await service.list_all(tx)
        ]


async def _deliveries(settings: Settings, endpoint_id: str, limit: int) -> list[Logged]:
    async with connected(settings.database_url) as db, db.transaction() as tx:
        endpoint = await service.get(tx, endpoint_id)
        return (await service.list_deliveries(tx, endpoint, after=None, limit=limit)).data


async def _test(settings: ApiSettings, endpoint_id: str) -> Result:
    async with connected(settings.database_url) as db:
        async with db.transaction() as tx:
            endpoint = await service.get(tx, endpoint_id)
            operator = Actor(endpoint.organization_id)
            event_type = endpoint.event_types[0]
            due = await service.begin_test(tx, endpoint, operator, event_type)
        vault = Vault(settings.sealing_keys)
        return await Sender(db, vault, settings.webhook_networks).send(due)


async def _rotate(settings: ApiSettings, endpoint_id: str, *, keep_old: bool) -> str:
    async with connected(settings.database_url) as db, db.transaction() as tx:
        endpoint = await service.get(tx, endpoint_id, hold=True)
        vault = Vault(settings.sealing_keys)
        operator = Actor(endpoint.organization_id)
        made = await service.rotate(tx, endpoint, operator, keep_old=keep_old, vault=vault)
    return made.secret


async def _delete(settings: Settings, endpoint_id: str) -> None:
    async with connected(settings.database_url) as db, db.transaction() as tx:
        endpoint = await service.get(tx, endpoint_id, hold=True)
        await service.delete(tx, endpoint, Actor(endpoint.organization_id))
