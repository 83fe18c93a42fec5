"""Sends the messages of the outbox: any number of processes may, and none waits for another."""

import random
import time
from dataclasses import dataclass

import structlog

from app import egress
from app.addresses import Inside
from app.db import Database
from app.egress import Unreachable
from app.outgoing import Pace, send_forever
from app.vault import SealBroken, Vault
from app.webhooks import outbox, signing
from app.webhooks.outbox import Due, Result

log = structlog.get_logger()

PACE = Pace(poll_s=1, most_at_once=32, most_of_one=8)  # who answers slowly holds up nobody else
TIMEOUT_S = 15.0
FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 3600.0
KEPT_BYTES = 1024  # of an answer, in the log


@dataclass(frozen=True)
class Sender:
    """Sends to the Internet and to the operator's `inside`; opens what is signed with."""

    db: Database
    vault: Vault
    inside: Inside

    async def run_forever(self) -> None:
        """Send what is due, until cancelled; a database that is away is waited for."""
        await send_forever(self.db, outbox.claim, self._tend, PACE)

    async def send(self, due: Due) -> Result:
        """Send one message once, with no transaction open meanwhile; write down how it went."""
        result = await self._post(due)
        async with self.db.transaction() as tx:
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

    async def _tend(self, due: Due) -> None:
        try:
            await self.send(due)
        except Exception:  # one message must not end the others; it is sent again once let go
            log.exception("webhook.not_settled", delivery_id=due.id)

    async def _post(self, due: Due) -> Result:
        started = time.monotonic()
        answer, error = None, None
        try:
            answer = await egress.post(
                due.url,
                headers=signed(self.vault, due, timestamp=int(time.time())),
                body=due.body.encode(),
                inside=self.inside,
                timeout_s=TIMEOUT_S,
                keep_bytes=KEPT_BYTES,
            )
        except (Unreachable, SealBroken) as reason:
            error = str(reason)
        took_ms = round((time.monotonic() - started) * 1000)
        if answer is None:
            return Result(took_ms, error=error)
        said = answer.start.decode(errors="replace").replace("\0", "")
        return Result(took_ms, answer.status, _refusal(answer.status), said)


def wait_s(attempts: int) -> float:
    """Return how long to wait after so many attempts: twice as long each time, give or take."""
    longest_exponent = 20  # far past the longest wait
    wait = FIRST_WAIT_S * 2.0 ** min(attempts - 1, longest_exponent)
    return min(wait, LONGEST_WAIT_S) * random.uniform(0.8, 1.2)  # noqa: S311  spreads load


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
