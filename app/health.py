"""/healthz and /readyz"""

import asyncio

from fastapi import APIRouter, Response
from pydantic import BaseModel
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from app.db import Database
from app.tables import Worker
from app.web import Config, Db
from app.workers.service import ALIVE

router = APIRouter(tags=["health"])

CHECK_TIMEOUT_S = 3


class Health(BaseModel):
    status: str


class Readiness(BaseModel):
    """What a job needs to run; `workers` counts those heard of in the last 30 s."""

    database: bool
    broker: bool
    workers: int


@router.get("/healthz", response_model=Health)
async def healthz() -> Health:
    """Say that this process lives."""
    return Health(status="ok")


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
async def readyz(response: Response, db: Db, settings: Config) -> Readiness:
    """Say whether a job could run now: 503 until database, broker and a worker are there."""
    workers, broker = await asyncio.gather(_live_workers(db), _ping(settings.redis_url))
    if not workers or not broker:
        response.status_code = 503
    return Readiness(database=workers is not None, broker=broker, workers=workers or 0)


async def _live_workers(db: Database) -> int | None:
    """Return how many workers were heard of lately; None when the database does not answer."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S), db.transaction() as tx:
            return (await tx.execute(select(func.count(Worker.id)).where(ALIVE))).scalar_one()
    except (SQLAlchemyError, TimeoutError):
        return None


async def _ping(redis_url: str) -> bool:
    try:
        async with Redis.from_url(redis_url, socket_connect_timeout=CHECK_TIMEOUT_S) as redis:
            return bool(await redis.ping())
    except (RedisError, OSError):
        return False
