"""What a Celery message sets in motion."""

import asyncio
import threading
from collections.abc import Mapping

from app.settings import Settings
from worker.devices import DevicePool
from worker.supervisor import run_next
from worker.warm import WarmTrainers


def train_waiting(
    settings: Settings,
    environment: Mapping[str, str],
    *,
    worker: str,
    devices: DevicePool,
    warm: WarmTrainers | None,
    shutdown: threading.Event,
) -> None:
    """Run waiting jobs, one after the other, until there is a reason to take no next one."""
    while not shutdown.is_set() and asyncio.run(
        run_next(
            settings, environment, worker=worker, devices=devices, warm=warm, shutdown=shutdown
        )
    ):
        pass
