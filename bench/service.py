"""A job on a whole Basin of one's own, and when it did what."""

import time
from dataclasses import dataclass
from typing import Any

import httpx

from tests.app.watching import JOBS, Watch
from tests.chaos.cluster import Cluster

STEPPED = """
    SELECT extract(epoch FROM min(ts)), extract(epoch FROM max(ts)) FROM metrics
    WHERE job_id = %s AND step > 0
"""


@dataclass(frozen=True)
class Course:
    """Seconds from before a job was submitted; steps when the run took them, the rest as seen."""

    job_id: str
    first_step: float
    first_step_seen: float
    last_step: float
    ended: float


async def course(cluster: Cluster, body: dict[str, Any]) -> Course:
    """Submit a job and watch its stream to the end; it has to succeed."""
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{cluster.port}/v1",
        headers={"Authorization": f"Bearer {cluster.key}"},
        timeout=120,
    ) as client:
        submitted_at = time.time()
        made = await client.post(JOBS, json=body)
        job_id = made.raise_for_status().json()["id"]
        watch = Watch(client, job_id)
        await watch.read_until(lambda: any(step > 0 for _, step in watch.steps()) or watch.is_done)
        seen_at = time.time()
        if not watch.is_done:
            await watch.read()
        ended_at = time.time()
    job = cluster.job(job_id)
    if job["status"] != "succeeded":
        raise RuntimeError(f"{job_id} {job['status']}: {job['error']}")
    ((first, last),) = cluster.sql(STEPPED, job_id)
    return Course(
        job_id=job_id,
        first_step=float(first) - submitted_at,
        first_step_seen=seen_at - submitted_at,
        last_step=float(last) - submitted_at,
        ended=ended_at - submitted_at,
    )
