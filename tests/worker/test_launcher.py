"""A run is a process group that leaves nothing behind and knows no secret."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.jobs.spec import ResourcesSpec
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


async def test_killing_a_run_ends_children_that_made_a_session_of_their_own(tmp_path: Path):
    log = tmp_path / "log"
    fork = FORK.replace("])", "], start_new_session=True)")
    process = await launcher.launch([sys.executable, "-c", fork], environment={}, log=log)
    await asyncio.to_thread(wait_until, lambda: b"up" in log.read_bytes(), timeout_s=10)
    (child,) = psutil.Process(process.pid).children()
    assert os.getpgid(child.pid) != process.pid

    await launcher.kill(process)

    wait_until(lambda: not child.is_running() or child.status() == "zombie", timeout_s=5)


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

    environment = launcher.train_environment(inherited, devices=["1", "3"], offline=True)

    assert environment["PATH"] == "/bin" and environment["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert not {"BASIN_KEY_PEPPER", "AWS_SECRET_ACCESS_KEY"} & set(environment)
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_the_leash_refuses_a_parent_that_is_gone():
    result = subprocess.run(
        [sys.executable, "-m", "worker.leash", str(os.getpid() + 1), "true"], capture_output=True
    )

    assert result.returncode == 1 and b"parent is gone" in result.stderr


def test_a_run_on_cpu_slots_sees_no_gpu():
    environment = launcher.train_environment({}, devices=["cpu", "cpu"], offline=False)

    assert environment["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("resources", "ranks"),
    [
        ({"gpus": 1, "zero_stage": None}, None),
        ({"gpus": 1, "zero_stage": 0}, None),  # nothing to share out
        ({"gpus": 1, "zero_stage": 2, "offload": "optimizer"}, "1"),
        ({"gpus": 2, "zero_stage": None}, "2"),
        ({"gpus": 4, "zero_stage": 1}, "4"),
    ],
)
def test_one_process_trains_by_itself_and_several_are_ranks_of_torchrun(
    resources: dict[str, Any], ranks: str | None
):
    command = launcher.train_command(Path("run"), ResourcesSpec.model_validate(resources))

    leashes = [command[i + 1] for i, word in enumerate(command) if word == "worker.leash"]
    assert command[-3:] == ["-m", "worker.trainer", "run"]
    assert leashes == [str(os.getpid())] + (["{pid}"] if ranks else [])
    if ranks:
        assert command[command.index("--nproc-per-node") + 1] == ranks
    else:
        assert "torch.distributed.run" not in command


def test_a_leashed_command_can_name_itself_as_a_parent():
    leash = [sys.executable, "-m", "worker.leash", str(os.getpid())]
    show = [sys.executable, "-c", "import os, sys; print(sys.argv[1] == str(os.getpid()))"]

    result = subprocess.run([*leash, *show, "{pid}"], capture_output=True, text=True)

    assert result.stdout == "True\n"


def test_devices_are_shared_out_all_or_none():
    pool = DevicePool(named_devices("0,1,2"))

    first = pool.take(2)

    assert first == ["0", "1"] and pool.free == 1
    assert pool.take(2) == [] and pool.free == 1
    pool.give_back(first)
    assert pool.take(3) == ["0", "1", "2"]


def test_a_cpu_can_have_several_slots():
    assert named_devices("cpu") == ["cpu"]
    assert DevicePool(named_devices("cpu,cpu")).take(2) == ["cpu", "cpu"]


@pytest.mark.parametrize("setting", ["gpu0; rm -rf /", "cpu,0", "0,0", "0,", ""])
def test_a_device_that_is_no_device_is_refused(setting: str):
    with pytest.raises(ValueError, match="say auto, cpu"):
        named_devices(setting)
