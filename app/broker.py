"""The bell: tells workers that a job waits. The row is the truth; a lost ring costs only time."""

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

log = structlog.get_logger()

TRAIN_TASK = "worker.train"
SWEEP_TASK = "worker.sweep"


def celery_url(redis_url: str) -> str:
    """Turn redis-py's unix:///path into kombu's redis+socket:///path."""
    return redis_url.replace("unix://", "redis+socket://", 1)


def make_celery(redis_url: str) -> Celery:
    """Return a Celery that stores no results and gives up a send soon when Redis is away."""
    celery = Celery("basin", broker=celery_url(redis_url))
    celery.conf.update(
        task_ignore_result=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"socket_connect_timeout": 2, "socket_timeout": 5},
        task_publish_retry=False,
    )
    return celery


class Bell:
    """Rings for waiting jobs through one Celery connection pool."""

    def __init__(self, celery: Celery) -> None:
        self._celery = celery

    def wake(self, job_id: str) -> None:
        """Tell a worker to look; when Redis is away the workers' own sweep finds the job."""
        try:
            self._celery.send_task(TRAIN_TASK, args=[job_id], ignore_result=True)
        except OperationalError as error:
            log.warning("broker.unreachable", job_id=job_id, error=str(error))
