"""`basin up` for real: one process that brings everything, and takes everything along."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from app.embedded import ServiceError
from app.up import Child, StopRequest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def data() -> Iterator[Path]:
    """A folder to be, outside pytest's own closed folders."""
    root = Path("/tmp") / f"basin-up-{os.getpid()}-{time.monotonic_ns()}"
    root.mkdir(mode=0o755)
    yield root / "data"
    with suppress(OSError):
        (root / "data" / "sockets").readlink().rmdir()
    shutil.rmtree(root)


def basin_up(data: Path, *arguments: str, port: int = 0) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "app.cli", "up", "--gpus", "cpu", "--data", str(data)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BASIN_")}
    return subprocess.Popen(
        [*argv, "--port", str(port), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    )


def first_line(process: subprocess.Popen[str]) -> dict[str, str]:
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return json.loads(line)


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[str, str]:
    process.send_signal(number)
    return process.communicate(timeout=60)


def processes_of(data: Path) -> list[psutil.Process]:
    """Whatever names the folder, works in it, or was told of it."""
    found = psutil.process_iter(["cmdline", "cwd", "environ"])
    return [p for p in found if str(data) in f"{list(p.info.values())}"]


def wait_until(condition) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_up_prints_one_line_serves_and_leaves_nothing(data):
    process = basin_up(data, "--json")

    ready = first_line(process)
    health = httpx.get(f"{ready['url']}/healthz", trust_env=False)
    with openai.OpenAI(base_url=f"{ready['url']}/v1", api_key=ready["api_key"]) as client:
        jobs = client.fine_tuning.jobs.list()
    stdout, stderr = end(process)

    assert health.status_code == 200
    assert jobs.data == []
    assert stdout == ""
    assert process.returncode == 0, stderr
    assert processes_of(data) == []


def test_up_again_finds_the_same_key(data):
    first = basin_up(data, "--json")
    before = first_line(first)
    end(first)

    second = basin_up(data, "--json")
    after = first_line(second)
    end(second, signal.SIGINT)

    assert after["api_key"] == before["api_key"]
    assert second.returncode == 0
    assert {p.name: p.stat().st_mode & 0o777 for p in (data / "key", data / "pepper")} == {
        "key": 0o600,
        "pepper": 0o600,
    }


def test_other_commands_find_it_by_its_folder_as_long_as_it_runs(data):
    process = basin_up(data, "--json")

    url = first_line(process)["url"]
    kept = (data / "url").read_text()
    end(process)

    assert kept == url
    assert not (data / "url").exists()


def test_killed_up_leaves_nothing(data):
    process = basin_up(data, "--json")
    first_line(process)

    process.kill()
    process.communicate()

    assert wait_until(lambda: not processes_of(data))


def test_a_killed_api_is_started_again(data):
    process = basin_up(data, "--json")
    url = first_line(process)["url"]
    api = next(p for p in psutil.Process(process.pid).children() if "app.serve" in p.cmdline())

    api.kill()
    # A zombie of ours until it is tended, hence not `api.wait()`.
    assert wait_until(lambda: not answers(url))
    again = wait_until(lambda: answers(url))
    _, stderr = end(process)

    assert again
    assert "The API stopped (exit code -9)" in stderr
    assert "api.log" in stderr
    assert process.returncode == 0


def test_people_are_told_where_it_runs_and_how_to_use_it(data):
    process = basin_up(data)
    lines: list[str] = []
    while not lines or "Ctrl-C" not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()[1]
    end(process)
    text = "".join(lines)

    assert "Basin runs at http://127.0.0.1:" in text
    assert "openai.OpenAI(base_url=" in text
    assert (data / "key").read_text().strip() in text
    assert str(data) in text


def test_a_taken_port_names_the_option(data):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = basin_up(data, port=taken.getsockname()[1])
        stdout, stderr = process.communicate(timeout=30)

    assert process.returncode == 1
    assert "--port" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""


def test_a_child_that_keeps_failing_is_given_up_with_the_end_of_its_log(tmp_path):
    argv = [sys.executable, "-c", "raise SystemExit('no luck')"]
    log = tmp_path / "api.log"
    child = Child("API", argv, log, {}, grace_s=1, back_off_s=0.001)
    child.start()

    with pytest.raises(ServiceError, match=r"5 times in a row(?s:.)*no luck"):
        while True:
            child.tend()
            time.sleep(0.01)


def test_a_second_signal_does_not_wait_for_the_worker(tmp_path):
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print(1, flush=True); time.sleep(99)"
    )
    log = tmp_path / "worker.log"
    child = Child("worker", [sys.executable, "-c", deaf], log, {}, grace_s=90)
    child.start()
    assert wait_until(lambda: log.read_text() == "1\n")

    child.stop(StopRequest(count=2))

    assert child.process.returncode == -signal.SIGKILL


def test_stopping_a_child_ends_what_it_started_elsewhere(tmp_path):
    grandchild = (
        "import subprocess, time;"
        "p = subprocess.Popen(['sleep', '99'], start_new_session=True);"
        "print(p.pid, flush=True); time.sleep(99)"
    )
    log = tmp_path / "worker.log"
    child = Child("worker", [sys.executable, "-c", grandchild], log, {}, grace_s=5)
    child.start()
    assert wait_until(lambda: log.read_text().endswith("\n"))
    pid = int(log.read_text())

    child.stop(StopRequest())

    assert wait_until(lambda: not psutil.pid_exists(pid))
