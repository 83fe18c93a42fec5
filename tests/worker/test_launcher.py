"""A run is a process group that leaves nothing behind and knows no secret."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import wait_until
from worker import launcher
from worker.devices import DevicePool, named_devices

SLEEP = "import time; time.sleep(60)"
FORK = (
    "import subprocess, sys, time;"
    f"subprocess.Popen([sys.executable, '-c', '{SLEEP}']);"
    "print('up', flush=True); time.sleep(60)"
)


async def test_killing_a_run_ends_its_children_too(tmp_path: Path):
    log = tmp_path / "log"
    process = await launcher.launch([sys.executable, "-c", FORK], environment={}, log=log)
    await asyncio.to_thread(wait_until, lambda: b"up" in log.read_bytes(), timeout_s=10)
    children = psutil.Process(process.pid).children()

    await launcher.kill(process)

    assert process.returncode == -signal.SIGKILL and children
    wait_until(lambda: not any(child.is_running() for child in children), timeout_s=5)


def test_a_run_dies_with_the_supervisor_that_was_killed(tmp_path: Path):
    leashed = [sys.executable, "-m", "worker.leash"]
    parent_code = (
        "import os, subprocess, sys, time;"
        f"p = subprocess.Popen([*{leashed!r}, str(os.getpid()), sys.executable, '-c', {SLEEP!r}]);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    wait_until(lambda: "worker.leash" not in child.cmdline(), timeout_s=10)

    parent.kill()
    parent.wait()
    parent.stdout.close()

    wait_until(lambda: not child.is_running() or child.status() == "zombie", timeout_s=5)


def test_a_run_learns_no_secret_of_the_service():
    inherited = {"BASIN_KEY_PEPPER": "p", "AWS_SECRET_ACCESS_KEY": "a", "PATH": "/bin"}

    environment = launcher.train_environment(inherited, device="1", offline=True)

    assert environment["PATH"] == "/bin" and environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert not {"BASIN_KEY_PEPPER", "AWS_SECRET_ACCESS_KEY"} & set(environment)
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_the_leash_refuses_a_parent_that_is_gone():
    result = subprocess.run(
        [sys.executable, "-m", "worker.leash", str(os.getpid() + 1), "true"], capture_output=True
    )

    assert result.returncode == 1 and b"parent is gone" in result.stderr


def test_devices_are_named_and_shared_out():
    pool = DevicePool(named_devices("0,1"))

    taken = {pool.take(), pool.take()}

    assert taken == {"0", "1"} and pool.take() is None
    pool.give_back("1")
    assert pool.take() == "1"


def test_a_device_that_is_no_device_is_refused():
    with pytest.raises(ValueError, match="say auto, cpu"):
        named_devices("gpu0; rm -rf /")
