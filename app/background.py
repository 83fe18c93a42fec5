"""What the API does beside answering: it sends. It, for a worker never learns the keys."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import structlog

from app.db import Database
from app.integrations.forwarder import Forwarder
from app.settings import ApiSettings, inherited_environment
from app.vault import Vault
from app.webhooks.sender import Sender

log = structlog.get_logger()

AGAIN_S = 5.0
Work = Callable[[], Awaitable[None]]


@asynccontextmanager
async def senders(settings: ApiSettings, db: Database, vault: Vault) -> AsyncIterator[None]:
    """Send for the length of a block."""
    sender = Sender(db, vault, settings.webhook_networks)
    forwarder = Forwarder(
        db,
        vault,
        inherited_environment(),
        mlflow_tracking_uri=settings.mlflow_tracking_uri,
        wandb_base_url=settings.wandb_base_url,
    )
    async with beside(sender.run_forever), beside(forwarder.run_forever):
        yield


@asynccontextmanager
async def beside(work: Work) -> AsyncIterator[None]:
    """Do work that has no end for the length of a block; a bug in it does not stop it for good."""
    task = asyncio.create_task(_again_and_again(work))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _again_and_again(work: Work) -> None:
    while True:
        try:
            await work()
        except Exception:
            log.exception("background.failed", again_in_s=AGAIN_S)
        await asyncio.sleep(AGAIN_S)
