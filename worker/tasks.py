"""What a Celery message sets in motion."""

import asyncio
import threading
from collections.abc import Mapping

from app.settings import Settings
from worker.devices import DevicePool
from worker.supervisor import run_next


def train_waiting(
    settings: Settings,
    environment: Mapping[str, str],
    *,
    worker: str,
    devices: DevicePool,
    shutdown: threading.Event,
) -> None:
    """Run waiting jobs on a free device until none waits; return at once when none is free."""
    device = devices.take()
    if device is None:
        return
    try:
        while not shutdown.is_set() and asyncio.run(
            run_next(settings, environment, worker=worker, device=device, shutdown=shutdown)
        ):
            pass
    finally:
        devices.give_back(device)
