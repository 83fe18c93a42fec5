"""The Celery application: `celery -A worker.celery_app worker`."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from celery.signals import setup_logging, worker_init, worker_shutdown, worker_shutting_down

from app import logs, tracing
from app.broker import SWEEP_TASK, TRAIN_TASK, make_celery
from app.settings import Settings, inherited_environment
from worker.devices import DevicePool, named_devices
from worker.previewer import preview, preview_device
from worker.sweep import pulse, sweep_once, tidy
from worker.tasks import train_waiting
from worker.warm import warm_trainers

SWEEP_S = 10.0

settings = Settings()
devices = DevicePool(named_devices(settings.devices))
previews_on = preview_device(settings.preview, devices.all)
shutdown = threading.Event()
threads: list[threading.Thread] = []  # beside Celery's own
hostname = socket.gethostname()
worker_name = f"{hostname}-{os.getpid()}"
warm = warm_trainers(settings, inherited_environment(), devices.all)
stop_tracing = tracing.configure(settings.otlp_endpoint, service="basin-worker")

app = make_celery(settings.redis_url)
app.conf.update(
    # A thread a device: it only watches a subprocess. Prefork would daemonize what trains.
    worker_pool="threads",
    # And one thread for what beat sends while every device is busy.
    worker_concurrency=len(devices.all) + 1,
    # The message is only a bell: acknowledged early, never redelivered, never hoarded.
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    worker_redirect_stdouts=False,
    worker_send_task_events=False,
    # For `celery beat`, where an operator wants one; every worker sweeps by itself as well.
    beat_schedule={
        "sweep": {"task": SWEEP_TASK, "schedule": SWEEP_S, "options": {"expires": SWEEP_S}}
    },
)


@app.task(name=TRAIN_TASK)  # type: ignore[untyped-decorator]  # Celery is untyped
def train(_job_id: str) -> None:
    """Run what waits, the best first; the id in the message is only the reason for the bell."""
    _train()


@app.task(name=SWEEP_TASK)  # type: ignore[untyped-decorator]  # Celery is untyped
def sweep_now() -> None:
    """Requeue what fell silent and start what waits; harmless however many do it at once."""
    if asyncio.run(sweep_once(settings.database_url)):
        _train()


def _train() -> None:
    train_waiting(
        settings,
        inherited_environment(),
        worker=worker_name,
        devices=devices,
        warm=warm,
        shutdown=shutdown,
    )


@setup_logging.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _log_as_we_do(**_: Any) -> None:
    """Take Celery's place, which would write lines of its own form."""
    logs.configure(settings.log_format)


@worker_init.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _start_pulse(**_: Any) -> None:
    """Start before the broker is reached: it may be away for long."""
    _start(_pulse, name="pulse")
    if previews_on is not None:
        _start(_preview, name="previewer")
    if warm is not None:
        _start(partial(warm.keep, shutdown), name="warm")


@worker_shutting_down.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _ask_runs_to_stop(**_: Any) -> None:
    shutdown.set()


@worker_shutdown.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _wait_for_threads(**_: Any) -> None:
    """Wait for our own threads while Python still works: once it exits, asyncio does not."""
    shutdown.set()
    for thread in threads:
        thread.join()
    stop_tracing()


def _start(work: Callable[[], None], *, name: str) -> None:
    threads[:] = [thread for thread in threads if thread.is_alive()]
    threads.append(threading.Thread(target=work, name=name))
    threads[-1].start()


def _pulse() -> None:
    asyncio.run(_beat_and_tidy())


async def _beat_and_tidy() -> None:
    await asyncio.gather(
        pulse(
            settings.database_url,
            worker=worker_name,
            hostname=hostname,
            devices=devices,
            previews_on=previews_on,
            start=lambda: _start(_train, name="train"),
            stop=shutdown,
        ),
        tidy(settings, shutdown),
    )


def _preview() -> None:
    assert previews_on is not None
    asyncio.run(
        preview(
            settings,
            inherited_environment(),
            worker=worker_name,
            device=previews_on,
            shutdown=shutdown,
        )
    )
