"""The devices of this worker: a run holds as many as it asked for, all or none."""

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from app.workers.service import Hardware
from worker import memory

_SETTING = re.compile(r"cpu(,cpu)*|\d+(,\d+)*")
NVIDIA_SMI = "nvidia-smi"
QUERY = ("--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits")
ANSWER_S = 30  # a driver that nobody holds open takes its time
MIB = 1 << 20


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


def hardware(devices: Sequence[str]) -> list[Hardware]:
    """Return what each device is; of a GPU that nvidia-smi does not tell of, nothing is known."""
    if "cpu" in devices:
        return [Hardware("cpu", memory.total_bytes())] * len(devices)
    found = gpus(_ask_driver())
    return [found.get(device, Hardware("gpu", None)) for device in devices]


def gpus(told: str) -> Mapping[str, Hardware]:
    """Read nvidia-smi's lines: index, name, MiB; a size that is not a number is unknown."""
    rows = [line.split(", ") for line in told.splitlines() if line.count(", ") == 2]
    return {
        index.strip(): Hardware(name, int(size) * MIB if size.strip().isdecimal() else None)
        for index, name, size in rows
    }


def _ask_driver() -> str:
    program = shutil.which(NVIDIA_SMI)
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *QUERY], capture_output=True, text=True, timeout=ANSWER_S, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""


class DevicePool:
    """Hands devices to runs; threads share it.

    Hold `claiming` while looking for a job: devices may come free meanwhile, but none is taken.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self.all = tuple(devices)
        self.claiming = threading.Lock()
        self._free = list(devices)
        self._rests_until = 0.0  # on the monotonic clock
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

    def rest(self, seconds: float) -> None:
        """Be of no use for a while, to whoever looks for a job."""
        self._rests_until = time.monotonic() + seconds

    @property
    def rests(self) -> bool:
        return time.monotonic() < self._rests_until

    def give_back(self, devices: Sequence[str]) -> None:
        with self._lock:
            self._free = sorted([*self._free, *devices])
