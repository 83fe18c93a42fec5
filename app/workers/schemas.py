"""Workers on the wire."""

from typing import Literal

from pydantic import BaseModel

from app.paging import Listed
from app.workers.service import Node


class LeaseOut(BaseModel):
    """A job that runs there; another tenant's has no id."""

    job_id: str | None
    devices: int
    lease_until: int | None


class HardwareOut(BaseModel):
    """What a device is; of a cpu slot the memory is the machine's, null is unknown."""

    name: str
    memory_bytes: int | None


class WorkerOut(Listed):
    """A worker that is alive; `devices` are GPU indices, or cpu slots."""

    object: Literal["worker"]
    hostname: str
    devices: list[str]
    hardware: list[HardwareOut]
    free: int
    started_at: int
    seen_at: int
    leases: list[LeaseOut]


def worker_out(node: Node, *, organization_id: str) -> WorkerOut:
    """Show a worker to one tenant."""
    return WorkerOut(
        id=node.id,
        object="worker",
        hostname=node.hostname,
        devices=list(node.devices),
        hardware=[
            HardwareOut(name=each.name, memory_bytes=each.memory_bytes) for each in node.hardware
        ],
        free=node.free,
        started_at=int(node.started_at.timestamp()),
        seen_at=int(node.seen_at.timestamp()),
        leases=[
            LeaseOut(
                job_id=lease.job_id if lease.organization_id == organization_id else None,
                devices=lease.devices,
                lease_until=int(lease.until.timestamp()) if lease.until else None,
            )
            for lease in node.leases
        ],
    )
