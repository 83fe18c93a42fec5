"""The worker's pulse: says it is alive, requeues the silent, rings for the waiting."""

import asyncio
import threading

import structlog
from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from app.broker import Bell
from app.db import Database, connected
from app.jobs import lease
from app.tables import Worker
from worker.devices import DevicePool

log = structlog.get_logger()

PULSE_S = 5.0


async def sweep(db: Database, bell: Bell, *, free: int) -> None:
    """Requeue jobs whose lease ran out; ring once when a job waits and a device is free."""
    async with db.transaction() as tx:
        woken = await lease.requeue_expired(tx)
        waiting = await lease.waiting(tx)
    for job_id in woken:
        log.warning("job.requeued", job_id=job_id)
    if waiting and free:
        await asyncio.to_thread(bell.wake, waiting)


async def beat(db: Database, *, worker: str, hostname: str, devices: DevicePool) -> None:
    """Write down that this worker is alive."""
    async with db.transaction() as tx:
        row = insert(Worker).values(
            id=worker, hostname=hostname, devices={"all": list(devices.all)}
        )
        seen = {"seen_at": func.now()}
        await tx.execute(row.on_conflict_do_update(index_elements=["id"], set_=seen))


async def pulse(
    database_url: str,
    bell: Bell,
    *,
    worker: str,
    hostname: str,
    devices: DevicePool,
    stop: threading.Event,
) -> None:
    """Beat and sweep every few seconds until told to stop; an absent database is waited for."""
    async with connected(database_url) as db:
        while not stop.is_set():
            try:
                await beat(db, worker=worker, hostname=hostname, devices=devices)
                await sweep(db, bell, free=devices.free)
            except (DBAPIError, SQLAlchemyError) as error:
                log.warning("sweep.postponed", error=str(error))
            await asyncio.to_thread(stop.wait, PULSE_S)
        async with db.transaction() as tx:
            found = await tx.get(Worker, worker)
            if found is not None:
                await tx.delete(found)
