"""What a worker tells of itself besides that it lives: renewals counted, memory of its GPUs."""

from collections.abc import Sequence
from typing import Any

import pynvml
import structlog
from prometheus_client import CollectorRegistry, Counter

log = structlog.get_logger()

_registry = CollectorRegistry()
RENEWALS = Counter("renewals", "Holds on jobs that were renewed.", registry=_registry)
FAILURES = Counter("failures", "Renewals that the database did not take.", registry=_registry)


def telemetry(devices: Sequence[str]) -> dict[str, Any]:
    """Return what stands on the worker's row."""
    return {
        "lease_renewals": int(_registry.get_sample_value("renewals_total") or 0),
        "lease_failures": int(_registry.get_sample_value("failures_total") or 0),
        "gpus": gpu_memory([device for device in devices if device != "cpu"]),
    }


def gpu_memory(devices: Sequence[str]) -> list[dict[str, Any]]:
    """Return the memory of GPUs by index, in bytes, whoever uses it; nothing without a driver."""
    if not devices:
        return []
    try:
        pynvml.nvmlInit()
        try:
            return [_memory(device) for device in devices]
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        log.warning("gpu.memory_unknown", error=str(error))
        return []


def _memory(device: str) -> dict[str, Any]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(int(device)))
    return {"device": device, "used_bytes": int(memory.used), "total_bytes": int(memory.total)}
