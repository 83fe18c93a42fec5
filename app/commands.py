"""The operator's commands: start the parts, migrate, sweep, check."""

import asyncio
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from app import fsck, migrate, up
from app.console import DEFAULT_DATA, AsJson, Data, out, print_json, settings_of
from app.db import Database, connected
from app.fsck import Finding, Totals
from app.integrations import service as integrations
from app.jobs import lease
from app.settings import ApiSettings, Settings, inherited_environment
from app.sweep import Swept, sweep_storage
from app.vault import SealBroken, Vault
from app.webhooks import service as webhook_endpoints


def start(
    *,
    data: Annotated[Path, typer.Option(help="Where everything is kept.")] = DEFAULT_DATA,
    models: Annotated[
        Path | None, typer.Option(help="Folder of base models; DATA/models when left out.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.")] = 8000,
    hub_model: Annotated[
        list[str] | None,
        typer.Option(help="A hub id to offer, org/name or org/name@revision; repeatable."),
    ] = None,
    gpus: Annotated[str, typer.Option(help="auto, cpu, cpu,cpu or indices such as 0,1.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line {url, api_key} once ready.")
    ] = False,
) -> None:
    """Start everything on this machine: PostgreSQL, Redis, API and worker. Ctrl-C stops it."""
    up.up(
        data=data,
        models=models,
        host=host,
        port=port,
        hub_models=hub_model or [],
        devices=gpus,
        as_json=as_json,
    )


def work(
    gpus: Annotated[
        str,
        typer.Option(help="auto, cpu, cpu,cpu or indices such as 0,1.", envvar="BASIN_DEVICES"),
    ] = "auto",
) -> None:
    """Run a worker in this terminal; each of its devices is one run's at a time."""
    environment = inherited_environment() | {"BASIN_DEVICES": gpus}
    command = [sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker"]
    os.execve(sys.executable, [*command, "--loglevel", "INFO"], environment)  # noqa: S606  argv, no shell


def bring_up_to_date(*, as_json: AsJson = False, data: Data = DEFAULT_DATA) -> None:
    """Bring the database to the newest schema."""
    revision = migrate.upgrade(settings_of(data, Settings).session_url)
    if as_json:
        print_json({"revision": revision})


def sweep(
    *,
    every: Annotated[
        float | None, typer.Option(help="Seconds between two sweeps; once when left out.", min=1)
    ] = None,
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Requeue jobs whose worker fell silent, and delete what nobody needs.

    That is files past their time, resume states of jobs that are over, and bytes without an owner.
    Workers do this by themselves; cron may too, or `basin sweep --every 10` beside them.
    """
    settings = settings_of(data, Settings)
    if every is None:
        _say_swept(*asyncio.run(_sweep(settings)), always=True, as_json=as_json)
    while every is not None:
        try:
            _say_swept(*asyncio.run(_sweep(settings)), always=as_json, as_json=as_json)
        except SQLAlchemyError as error:
            print(f"The database is away, trying again: {error}", file=sys.stderr)
        time.sleep(every)


def _say_swept(woken: list[str], swept: Swept, *, always: bool, as_json: bool) -> None:
    if as_json:
        print_json({"requeued": woken, "deleted": asdict(swept)})
        return
    if woken or always:
        out.print(f"{len(woken)} requeued" + "".join(f"\n  {job_id}" for job_id in woken))
    if swept != Swept(0, 0, 0, 0, 0) or always:
        out.print(
            f"deleted: {swept.files} files, {swept.resume_states} resume states,"
            f" {swept.blobs} blobs, {swept.workers} silent workers; {swept.uploads} uploads expired"
        )


def check(
    *,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Read every byte too, and compare the sha256 of each blob."),
    ] = False,
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Look for rows and bytes in the database that contradict each other; changes nothing.

    Exits 0 when nothing is wrong, and 1 with a table when something is. It may run beside a service
    at work. What the next sweep clears by itself is listed with these words. --deep reads the whole
    database: the time is that of a backup.
    """
    findings, looked_at = asyncio.run(_fsck(settings_of(data, Settings), deep=deep))
    if as_json:
        print_json(
            {"looked_at": asdict(looked_at), "findings": [asdict(each) for each in findings]}
        )
    elif not findings:
        size = f"{looked_at.size_bytes / 2**30:.2f} GiB"
        out.print(f"nothing is wrong: {looked_at.blobs} blobs, {size}, {looked_at.jobs} jobs")
    else:
        table = Table("kind", "subject", "what is wrong")
        for found in findings:
            table.add_row(found.kind, found.subject, Text(found.message))
        out.print(table)
    if findings:
        raise typer.Exit(1)


def reseal(*, as_json: AsJson = False, data: Data = DEFAULT_DATA) -> None:
    """Seal webhook secrets and integration keys with the first key of BASIN_SECRETS_KEY.

    Put the new key before the old one, separated by a comma, restart the API, run this, and take
    the old key out. All or nothing is sealed anew.
    """
    try:
        endpoints, keys_of_others = asyncio.run(_reseal(settings_of(data, ApiSettings)))
    except SealBroken as error:
        raise typer.BadParameter(f"{error} Add that key to the end.") from error
    if as_json:
        print_json({"webhook_endpoints": endpoints, "integration_keys": keys_of_others})
    else:
        out.print(f"sealed anew: {endpoints} webhook endpoints, {keys_of_others} integration keys")


async def _sweep(settings: Settings) -> tuple[list[str], Swept]:
    async with connected(settings.database_url) as db:
        async with db.transaction() as tx:
            woken = await lease.requeue_expired(tx)
        swept = await sweep_storage(
            db,
            file_retention_days=settings.file_retention_days,
            resume_retention_days=settings.resume_retention_days,
        )
        return woken, swept


async def _reseal(settings: ApiSettings) -> tuple[int, int]:
    vault = Vault(settings.sealing_keys)
    async with connected(settings.database_url) as db, db.transaction() as tx:
        return await webhook_endpoints.reseal(tx, vault), await integrations.reseal(tx, vault)


async def _fsck(settings: Settings, *, deep: bool) -> tuple[list[Finding], Totals]:
    async with connected(settings.database_url) as db:
        async with db.transaction() as tx:
            looked_at = await fsck.totals(tx)
            findings = await fsck.check(tx)
        if deep:
            findings += await _fsck_bytes(db, findings, looked_at.size_bytes)
        return findings, looked_at


async def _fsck_bytes(db: Database, known: list[Finding], size_bytes: int) -> list[Finding]:
    columns = BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=size_bytes)
        return await fsck.check_bytes(db, known, lambda size: progress.advance(task, size))
