"""The worker's pulse: says it is alive, requeues the silent, starts what waits."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict

import structlog
from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from app.db import Database, connected
from app.environments.catalog import runnable
from app.jobs import lease, queue
from app.settings import Settings
from app.sweep import sweep_storage
from app.tables import Worker
from app.workers.service import Hardware
from worker import leftovers
from worker.devices import DevicePool, hardware
from worker.telemetry import telemetry

log = structlog.get_logger()

PULSE_S = 5.0
TIDY_S = 60.0


async def sweep(db: Database) -> bool:
    """Requeue jobs whose lease ran out; say whether a job waits that may start."""
    async with db.transaction() as tx:
        woken = await lease.requeue_expired(tx)
        waiting = await queue.first_waiting(tx)
    for job_id in woken:
        log.warning("job.requeued", job_id=job_id)
    return waiting is not None


async def sweep_once(database_url: str) -> bool:
    """Sweep with a connection of its own."""
    async with connected(database_url) as db:
        return await sweep(db)


async def beat(
    db: Database,
    *,
    worker: str,
    hostname: str,
    devices: DevicePool,
    described: Sequence[Hardware],
    environments: Sequence[str],
    previews_on: str | None,
) -> None:
    """Write down that this worker is alive, what it has, and how it fares."""
    fares = await asyncio.to_thread(telemetry, devices.all)
    has = {
        "all": list(devices.all),
        "hardware": [asdict(each) for each in described],
        "environments": list(environments),
        "preview": previews_on,
    }
    async with db.transaction() as tx:
        row = insert(Worker).values(id=worker, hostname=hostname, devices=has, telemetry=fares)
        seen = {"seen_at": func.now(), "telemetry": fares}
        await tx.execute(row.on_conflict_do_update(index_elements=["id"], set_=seen))


async def tidy(settings: Settings, stop: threading.Event) -> None:
    """Delete what nobody needs, every minute until told to stop; a database is waited for."""
    async with connected(settings.database_url) as db:
        while not stop.is_set():
            try:
                await leftovers.sweep(db, settings.runs_dir)
                await sweep_storage(
                    db,
                    file_retention_days=settings.file_retention_days,
                    resume_retention_days=settings.resume_retention_days,
                )
            except SQLAlchemyError as error:
                log.warning("tidy.postponed", error=str(error))
            await asyncio.to_thread(stop.wait, TIDY_S)


async def pulse(
    database_url: str,
    *,
    worker: str,
    hostname: str,
    devices: DevicePool,
    previews_on: str | None,
    start: Callable[[], None],
    stop: threading.Event,
) -> None:
    """Beat and sweep every few seconds until told to stop; an absent database is waited for.

    What waits is started here, without a message: it needs neither Redis nor Celery.
    """
    described = await asyncio.to_thread(hardware, devices.all)
    environments = await asyncio.to_thread(runnable)
    async with connected(database_url) as db:
        while not stop.is_set():
            try:
                await beat(
                    db,
                    worker=worker,
                    hostname=hostname,
                    devices=devices,
                    described=described,
                    environments=environments,
                    previews_on=previews_on,
                )
                if await sweep(db) and devices.free:
                    start()
            except SQLAlchemyError as error:
                log.warning("sweep.postponed", error=str(error))
            await asyncio.to_thread(stop.wait, PULSE_S)
        async with db.transaction() as tx:
            found = await tx.get(Worker, worker)
            if found is not None:
                await tx.delete(found)
