"""`basin keys`: make, list, rotate and revoke API keys."""

import asyncio
from typing import Annotated

import typer

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
from app.keys import service
from app.keys.service import Scope
from app.settings import ApiSettings, Settings

app = typer.Typer(help="Make, list, rotate and revoke API keys.", no_args_is_help=True)

ExpiresDays = Annotated[
    int | None, typer.Option(help="Days until it ends by itself; for good when left out.", min=1)
]
COLUMNS = ("key", "organization", "name", "scope", "created", "expires", "state")
Grace = Annotated[int, typer.Option(help="How long the old secret is good still.", min=0)]


@app.command("create")
def create_key(
    *,
    org: Annotated[str, typer.Option(help="The organization the key is for.")] = "default",
    name: Annotated[str, typer.Option(help="What the key is called in lists.")] = "unnamed",
    scope: Annotated[
        Scope,
        typer.Option(
            help="read looks, write submits too, admin manages keys too, operator every"
            " organization."
        ),
    ] = Scope.WRITE,
    expires_days: ExpiresDays = None,
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Make a key and print it; it is shown this once."""
    settings = settings_of(data, ApiSettings)
    key = asyncio.run(_create(settings, org=org, name=name, scope=scope, expires_days=expires_days))
    say_secret("key", key, as_json=as_json)


@app.command("list")
def list_keys(*, as_json: AsJson = False, data: Data = DEFAULT_DATA) -> None:
    """List keys, without their secrets."""
    rows = asyncio.run(_rows(settings_of(data, Settings)))
    say_rows(COLUMNS, rows, as_json=as_json)


@app.command("rotate")
def rotate_key(
    key_id: str, *, grace_minutes: Grace = 0, as_json: AsJson = False, data: Data = DEFAULT_DATA
) -> None:
    """Give a key a new secret and print it; the old one ends at once, or after a grace.

    KEY_ID is what `basin keys list` shows; it stays.
    """
    with refusals():
        key = asyncio.run(_rotate(settings_of(data, ApiSettings), key_id, grace_minutes))
    say_secret("key", key, as_json=as_json)


@app.command("revoke")
def revoke_key(key_id: str, *, as_json: AsJson = False, data: Data = DEFAULT_DATA) -> None:
    """Make a key useless at once; KEY_ID is what `basin keys list` shows."""
    with refusals():
        asyncio.run(_revoke(settings_of(data, Settings), key_id))
    if as_json:
        print_json({"id": key_id, "revoked": True})
    else:
        out.print(f"{key_id} revoked")


async def _create(
    settings: ApiSettings, *, org: str, name: str, scope: Scope, expires_days: int | None
) -> str:
    async with connected(settings.database_url) as db, db.transaction() as tx:
        return await service.create(
            tx,
            organization=org,
            name=name,
            pepper=settings.key_pepper.get_secret_value(),
            scope=scope,
            expires_days=expires_days,
        )


async def _rows(settings: Settings) -> list[tuple[str, ...]]:
    async with connected(settings.database_url) as db, db.transaction() as tx:
        return [
            (
                key.id,
                organization,
                key.name,
                key.scope,
                f"{key.created_at:%Y-%m-%d %H:%M}",
                f"{key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "never",
                state,
            )
            for key, organization, state in await service.list_keys(tx)
        ]


async def _rotate(settings: ApiSettings, key_id: str, grace_minutes: int) -> str:
    pepper = settings.key_pepper.get_secret_value()
    async with connected(settings.database_url) as db, db.transaction() as tx:
        key = await service.get(tx, key_id)
        operator = Actor(key.organization_id)
        made = await service.rotate(tx, key, operator, pepper=pepper, grace_minutes=grace_minutes)
    return made.secret


async def _revoke(settings: Settings, key_id: str) -> None:
    async with connected(settings.database_url) as db, db.transaction() as tx:
        key = await service.get(tx, key_id)
        await service.revoke(tx, key, Actor(key.organization_id))
