"""The devices of this worker: one run each."""

import re
import threading
from pathlib import Path


def named_devices(setting: str) -> list[str]:
    """Return the devices a worker uses: GPU indices, or one CPU slot.

    Raises:
        ValueError: neither auto, cpu, nor indices such as 0,1.
    """
    if setting == "auto":
        found = sorted(
            path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")
        )
        return found or ["cpu"]
    if setting == "cpu":
        return ["cpu"]
    if not re.fullmatch(r"\d+(,\d+)*", setting):
        raise ValueError(f"devices {setting!r}: say auto, cpu, or GPU indices such as 0,1")
    return setting.split(",")


class DevicePool:
    """Hands each device to one run at a time; threads share it."""

    def __init__(self, devices: list[str]) -> None:
        self.all = tuple(devices)
        self._free = list(devices)
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> str | None:
        with self._lock:
            return self._free.pop() if self._free else None

    def give_back(self, device: str) -> None:
        with self._lock:
            self._free.append(device)
