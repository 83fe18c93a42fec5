"""Sends the messages of the outbox: any number of processes may, and none waits for another."""

import asyncio
import random
import time
from collections import Counter

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app import egress
from app.addresses import Inside
from app.db import Database
from app.egress import Unreachable
from app.vault import SealBroken, Vault
from app.webhooks import outbox, signing
from app.webhooks.outbox import Due, Result

log = structlog.get_logger()

POLL_S = 1.0
TIMEOUT_S = 15.0
MOST_AT_ONCE = 32
MOST_OF_ONE = 8  # organization: who answers slowly holds up nobody else
FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 3600.0
KEPT_BYTES = 1024  # of an answer, in the log


async def send_forever(db: Database, vault: Vault, inside: Inside) -> None:
    """Send what is due, until cancelled; a database that is away is waited for."""
    async with asyncio.TaskGroup() as group:
        flying: dict[asyncio.Task[None], str] = {}
        while True:
            try:
                while due := await _next(db, flying):
                    task = group.create_task(_send(db, vault, inside, due))
                    flying[task] = due.organization_id
            except SQLAlchemyError as error:
                log.warning("webhooks.postponed", error=str(error))
            await asyncio.sleep(POLL_S)
            flying = {task: owner for task, owner in flying.items() if not task.done()}


async def attempt(db: Database, vault: Vault, inside: Inside, due: Due) -> Result:
    """Send one message once, with no transaction open meanwhile, and write down how it went."""
    result = await _post(vault, inside, due)
    async with db.transaction() as tx:
        became = await outbox.settle(tx, due, result, wait_s=wait_s(due.attempt))
    log.info(
        "webhook.attempted",
        delivery_id=due.id,
        attempt=due.attempt,
        status_code=result.status_code,
        error=result.error,
        state=became,
    )
    return result


def wait_s(attempts: int) -> float:
    """Return how long to wait after so many attempts: twice as long each time, give or take."""
    longest_exponent = 20  # far past the longest wait
    wait = FIRST_WAIT_S * 2.0 ** min(attempts - 1, longest_exponent)
    return min(wait, LONGEST_WAIT_S) * random.uniform(0.8, 1.2)  # noqa: S311  spreads load


async def _next(db: Database, flying: dict[asyncio.Task[None], str]) -> Due | None:
    if len(flying) >= MOST_AT_ONCE:
        return None
    busy = [owner for owner, count in Counter(flying.values()).items() if count >= MOST_OF_ONE]
    async with db.transaction() as tx:
        return await outbox.claim(tx, passing_over=busy)


async def _send(db: Database, vault: Vault, inside: Inside, due: Due) -> None:
    try:
        await attempt(db, vault, inside, due)
    except Exception:  # one message must not end the others; it is sent again once nobody holds it
        log.exception("webhook.not_settled", delivery_id=due.id)


async def _post(vault: Vault, inside: Inside, due: Due) -> Result:
    started = time.monotonic()

    def result(
        *, status_code: int | None = None, error: str | None = None, response: bytes = b""
    ) -> Result:
        shown = response.decode(errors="replace").replace("\0", "")
        took_ms = round((time.monotonic() - started) * 1000)
        return Result(took_ms, status_code, error, None if status_code is None else shown)

    try:
        headers = signed(vault, due, timestamp=int(time.time()))
        answer = await egress.post(
            due.url,
            headers=headers,
            body=due.body.encode(),
            inside=inside,
            timeout_s=TIMEOUT_S,
            keep_bytes=KEPT_BYTES,
        )
    except (Unreachable, SealBroken) as error:
        return result(error=str(error))
    return result(status_code=answer.status, error=_refusal(answer.status), response=answer.start)


def signed(vault: Vault, due: Due, *, timestamp: int) -> dict[str, str]:
    """Return the headers of Standard Webhooks; in a grace with a signature by each secret."""
    body = due.body.encode()
    signatures = [
        signing.sign(vault.open(secret), message_id=due.id, timestamp=timestamp, body=body)
        for secret in due.secrets
    ]
    return {
        "content-type": "application/json",
        "user-agent": "Basin-Webhooks",
        "webhook-id": due.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def _refusal(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"It answered {status}: redirects are not followed."
    return f"It answered {status}."
