"""The devices of this worker: a run holds as many as it asked for, all or none."""

import re
import threading
from collections.abc import Sequence
from pathlib import Path

_SETTING = re.compile(r"cpu(,cpu)*|\d+(,\d+)*")


def named_devices(setting: str) -> list[str]:
    """Return the devices a worker uses: GPU indices, or one slot for each cpu.

    Raises:
        ValueError: neither auto, cpu, cpu,cpu, nor indices such as 0,1; or one index twice.
    """
    if setting == "auto":
        found = sorted(
            path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")
        )
        return found or ["cpu"]
    devices = setting.split(",")
    twice = "cpu" not in devices and len(set(devices)) < len(devices)
    if twice or not _SETTING.fullmatch(setting):
        raise ValueError(
            f"devices {setting!r}: say auto, cpu, cpu,cpu for two slots, or GPU indices such as 0,1"
        )
    return devices


class DevicePool:
    """Hands devices to runs; threads share it.

    Hold `claiming` while looking for a job: devices may come free meanwhile, but none is taken.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self.all = tuple(devices)
        self.claiming = threading.Lock()
        self._free = list(devices)
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[str]:
        """Take so many devices, the lowest first, or none when there are fewer."""
        with self._lock:
            if count > len(self._free):
                return []
            taken, self._free = self._free[:count], self._free[count:]
            return taken

    def give_back(self, devices: Sequence[str]) -> None:
        with self._lock:
            self._free = sorted([*self._free, *devices])
