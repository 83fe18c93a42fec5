"""Sends metrics elsewhere, in a process of its own each time: one that hangs hurts no job."""

import asyncio
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from app.db import Database
from app.integrations import forwards
from app.integrations.batch import Batch, Sent
from app.integrations.forwards import Due
from app.integrations.service import MLFLOW, WANDB
from app.outgoing import Pace, send_forever
from app.vault import SealBroken, Vault

log = structlog.get_logger()

PACE = Pace(poll_s=2, most_at_once=4, most_of_one=2)
TIMEOUT_S = 150.0
SHOWN_CHARACTERS = 300
# What a child inherits; of the service's own settings and secrets it gets none.
INHERITED = (
    "PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "PYTHONPATH",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
    "WANDB_MODE", "WANDB_DIR",
)  # fmt: skip
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


class NotSent(Exception):
    """Nothing is known to have arrived; the message may be shown to the job's owner."""


@dataclass(frozen=True)
class Forwarder:
    """Where to send, and what a child may know of this process's environment."""

    db: Database
    vault: Vault
    environment: Mapping[str, str]
    mlflow_tracking_uri: str | None = None
    wandb_base_url: str | None = None

    async def run_forever(self) -> None:
        """Send what is due, until cancelled; a database that is away is waited for."""
        await send_forever(self.db, forwards.claim, self._tend, PACE)

    async def _tend(self, due: Due) -> None:
        try:
            await self.forward(due)
        except Exception:  # one job must not end the others; it is tried again
            log.exception("metrics.not_settled", job_id=due.job_id, target=due.target)

    async def forward(self, due: Due) -> None:
        """Send once, with no transaction open meanwhile, and write down how it went."""
        url: str | None = None
        error: str | None = None
        try:
            url = (await self._send(due)).url
        except NotSent as reason:
            error = str(reason)
        async with self.db.transaction() as tx:
            await forwards.settle(tx, due, url=url, error=error)
        log.info(
            "metrics.forwarded", job_id=due.job_id, target=due.target, steps=len(due.steps),
            error=error,
        )  # fmt: skip

    async def _send(self, due: Due) -> Sent:
        key = self._key(due)
        given = Batch(
            job_id=due.job_id,
            organization=due.organization,
            run=due.run,
            config=due.config,
            steps=due.steps,
            status=due.status,
        )
        with tempfile.TemporaryDirectory(prefix="basin-forward-") as scratch:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", f"app.integrations.to_{due.target}",
                stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True,
                env=self._environment(due, key, scratch),
            )  # fmt: skip
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    out, err = await process.communicate(given.model_dump_json().encode())
            except TimeoutError as error:
                raise NotSent(f"No answer within {TIMEOUT_S:g} s.") from error
            finally:
                await _end(process)
        if process.returncode:
            self._refuse(due, err.decode(errors="replace"), key)
        return _sent(out)

    def _key(self, due: Due) -> str | None:
        if due.target != WANDB:
            return None
        if due.key is None:
            raise NotSent(
                "The key of Weights & Biases was deleted; an administrator can store one."
            )
        try:
            return self.vault.open(due.key)
        except SealBroken as error:
            raise NotSent(f"The stored key cannot be opened. {error}") from error

    def _environment(self, due: Due, key: str | None, scratch: str) -> dict[str, str]:
        environment = PATIENCE | {"HOME": scratch, "WANDB_DIR": scratch}
        environment |= {
            name: self.environment[name] for name in INHERITED if name in self.environment
        }
        if key is not None:
            environment["WANDB_API_KEY"] = key
        if due.target == WANDB and self.wandb_base_url:
            environment["WANDB_BASE_URL"] = self.wandb_base_url
        if due.target == MLFLOW and self.mlflow_tracking_uri:
            environment["MLFLOW_TRACKING_URI"] = self.mlflow_tracking_uri
        return environment

    def _refuse(self, due: Due, printed: str, key: str | None) -> None:
        """Tell the operator's log what a child said, and a job's owner of their own service."""
        if key is not None:
            printed = printed.replace(key, "…")
        last = (printed.strip().splitlines() or ["It said nothing."])[-1][:SHOWN_CHARACTERS]
        log.warning("metrics.refused", job_id=due.job_id, target=due.target, error=last)
        # MLflow is the operator's: its address and errors are not for tenants.
        raise NotSent(last if due.target == WANDB else "The server's log says why.")


def _sent(out: bytes) -> Sent:
    lines = out.decode(errors="replace").strip().splitlines()
    try:
        return Sent.model_validate_json(lines[-1] if lines else "")
    except ValidationError as error:
        raise NotSent("It ended without saying that it was done.") from error


async def _end(process: Process) -> None:
    """End a child and whatever it started, if it has not ended."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
