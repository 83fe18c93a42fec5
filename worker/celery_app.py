"""The Celery application: `celery -A worker.celery_app worker`."""

import asyncio
import os
import socket
import threading
from typing import Any

from celery.signals import worker_ready, worker_shutdown, worker_shutting_down

from app import logs
from app.broker import TRAIN_TASK, Bell, make_celery
from app.settings import Settings, inherited_environment
from worker.devices import DevicePool, named_devices
from worker.sweep import pulse
from worker.tasks import train_waiting

settings = Settings()
devices = DevicePool(named_devices(settings.devices))
shutdown = threading.Event()
hostname = socket.gethostname()
worker_name = f"{hostname}-{os.getpid()}"

app = make_celery(settings.redis_url)
app.conf.update(
    # A thread a device: it only watches a subprocess. Prefork would daemonize what trains.
    worker_pool="threads",
    worker_concurrency=len(devices.all),
    # The message is only a bell: acknowledged early, never redelivered, never hoarded.
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    worker_redirect_stdouts=False,
    worker_send_task_events=False,
)


@app.task(name=TRAIN_TASK)  # type: ignore[untyped-decorator]  # Celery is untyped
def train(_job_id: str) -> None:
    """Run what waits, the best first; the id in the message is only the reason for the bell."""
    train_waiting(
        settings, inherited_environment(), worker=worker_name, devices=devices, shutdown=shutdown
    )


@worker_ready.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _start_pulse(**_: Any) -> None:
    logs.configure()
    threading.Thread(target=_pulse, name="pulse").start()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _ask_runs_to_stop(**_: Any) -> None:
    shutdown.set()


@worker_shutdown.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _stop_pulse(**_: Any) -> None:
    shutdown.set()


def _pulse() -> None:
    asyncio.run(
        pulse(
            settings.database_url,
            Bell(app),
            worker=worker_name,
            hostname=hostname,
            devices=devices,
            stop=shutdown,
        )
    )
