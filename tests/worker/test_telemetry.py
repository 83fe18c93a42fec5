"""What a worker tells of itself."""

import threading
from pathlib import Path
from typing import Any

import pytest

from worker import telemetry
from worker.run import Run
from worker.rundir import RunDir


def test_a_renewed_hold_is_counted(tmp_path: Path):
    before = telemetry.telemetry(["cpu"])
    run: Any = Run(None, None, RunDir(tmp_path), threading.Event())  # type: ignore[arg-type]

    run.renewed(None)

    after = telemetry.telemetry(["cpu"])
    assert after["lease_renewals"] == before["lease_renewals"] + 1
    assert after["gpus"] == []


def test_without_a_driver_there_is_no_memory_to_tell_of():
    assert telemetry.gpu_memory([]) == []


@pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="no NVIDIA GPU here")
def test_the_memory_of_a_gpu_is_told():
    (gpu,) = telemetry.gpu_memory(["0"])

    assert gpu["device"] == "0" and 0 < gpu["used_bytes"] < gpu["total_bytes"]
