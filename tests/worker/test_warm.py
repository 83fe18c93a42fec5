"""A process that waits becomes one run, as good as one that was started for it, and is gone."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from app.jobs.spec import ResourcesSpec, Started, Stopped
from app.settings import Settings, inherited_environment
from tests.waiting import wait_until
from tests.worker.trainer.runs import adapter_bytes, events, make_run, of_type, run_of
from worker import launcher, warm
from worker.rundir import RunDir
from worker.warm import WarmProcess, WarmTrainers, warm_command, warm_trainers

ENVIRONMENT = launcher.train_environment(
    inherited_environment() | {"OMP_NUM_THREADS": "1"}, devices=["cpu"], offline=True
)
RUN_S = 60.0
# Says what `worker.trainer.warm` says, without its imports; its run lasts as long as it is told.
STAND_IN = """
import os, sys, time
os.write(1, b"ready\\n")
if sys.stdin.read():
    os.write(1, b"begun\\n")
    time.sleep(float(sys.argv[1]))
"""
LEASH = [sys.executable, "-m", "worker.leash", str(os.getpid())]


def stand_in(*, lasts_s: float = RUN_S) -> list[str]:
    return [*LEASH, sys.executable, "-c", STAND_IN, str(lasts_s)]


SLOW = [word.replace("import os", "import time; time.sleep(1); import os") for word in stand_in()]


def light(*environments: Mapping[str, str], lasts_s: float = RUN_S) -> WarmTrainers:
    """Processes that import nothing, started again at once."""
    given = environments or [ENVIRONMENT]
    return WarmTrainers(stand_in(lasts_s=lasts_s), given, rest_s=0, again_s=0)


@contextmanager
def kept(trainers: WarmTrainers) -> Iterator[threading.Event]:
    """Keep processes waiting, as a worker does until it is shut down."""
    shutdown = threading.Event()
    thread = threading.Thread(target=trainers.keep, args=(shutdown,))
    thread.start()
    try:
        yield shutdown
    finally:
        shutdown.set()
        thread.join()


def begin(
    trainers: WarmTrainers, folder: Path, environment: Mapping[str, str] = ENVIRONMENT
) -> WarmProcess:
    """Begin a run in the process that is there for it, or comes."""
    found: list[WarmProcess] = []

    def taken() -> bool:
        found.extend(filter(None, [trainers.take(environment)]))
        return bool(found)

    wait_until(taken, timeout_s=RUN_S)
    assert asyncio.run(found[0].begin(folder))
    return found[0]


def stand_ins() -> list[psutil.Process]:
    """Those that wait, and those that run."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and STAND_IN in child.cmdline()
    ]


# with everything imported


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmTrainers]:
    found = WarmTrainers(warm_command(tmp_path_factory.getbasetemp()), [ENVIRONMENT], rest_s=0)
    with kept(found):
        yield found


def make(task: str, models_dir: Path, path: Path) -> RunDir:
    if task == "causal":
        return make_run(path, models_dir / "tiny-llama", peft={"dropout": 0.1})
    return run_of(task, models_dir, path)


async def train_cold(run: RunDir) -> int:
    resources = ResourcesSpec(gpus=1, zero_stage=0)
    process = await launcher.launch(
        launcher.train_command(run.path, resources), environment=ENVIRONMENT, log=run.log
    )
    return await process.wait()


@pytest.mark.parametrize("task", ["causal", "classification"])
def test_a_warm_run_ends_with_the_bits_of_a_cold_one(
    trainers: WarmTrainers, models_dir: Path, tmp_path: Path, task: str
):
    warm_run, cold_run = (make(task, models_dir, tmp_path / kind) for kind in ("warm", "cold"))

    process = begin(trainers, warm_run.path)
    codes = process.join(), asyncio.run(train_cold(cold_run))

    assert codes == (0, 0), warm_run.log.read_text()
    assert adapter_bytes(warm_run) == adapter_bytes(cold_run)
    assert [each.type for each in events(warm_run)] == [each.type for each in events(cold_run)]
    assert not psutil.pid_exists(process.pid)


def test_a_warm_run_shows_its_folder_and_stops_when_asked_as_a_cold_one(
    trainers: WarmTrainers, models_dir: Path, tmp_path: Path
):
    folder = tmp_path / "with a space"
    run = make_run(folder, models_dir / "tiny-llama", training={"n_epochs": 500})

    process = begin(trainers, folder)
    wait_until(lambda: bool(of_type(run, Started)), timeout_s=RUN_S)
    seen = psutil.Process(process.pid)
    shown, environment = [word for word in seen.cmdline() if word], seen.environ()
    launcher.ask(process)

    assert process.join() == 0 and isinstance(events(run)[-1], Stopped)
    assert shown == [sys.executable, "-m", "worker.trainer", str(folder)]
    assert environment == ENVIRONMENT and os.getpgid(0) != process.pid
    assert run.latest_checkpoint() is not None and "loss" in run.log.read_text()


def test_what_is_imported_while_it_waits_initializes_no_gpu():
    code = """
import importlib, importlib.util, torch
from worker.trainer.warm import LATE, TRAINER

def refuse(*_):
    raise AssertionError("a context on the GPU takes memory")

torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
torch.cuda._lazy_init = torch.cuda.init = torch._C._cuda_init = refuse
for name in (TRAINER, *filter(importlib.util.find_spec, LATE)):
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


# with stand-ins that import nothing


def test_each_process_is_one_run(tmp_path: Path):
    trainers = light(lasts_s=0)
    with kept(trainers):
        first, second = (begin(trainers, tmp_path) for _ in range(2))
        codes = first.join(), second.join()

    assert first.pid != second.pid and codes == (0, 0)


def test_a_device_has_one_process_and_slots_of_the_processor_one_each(tmp_path: Path):
    gpu = ENVIRONMENT | {launcher.DEVICES: "1"}
    trainers = light(ENVIRONMENT, ENVIRONMENT, gpu)
    with kept(trainers):
        runs = [begin(trainers, tmp_path, each) for each in (ENVIRONMENT, gpu, ENVIRONMENT)]
        found = [psutil.Process(each.pid).environ() for each in runs]
        for each in runs:
            each.end()

    assert found == [ENVIRONMENT, gpu, ENVIRONMENT]


def test_where_one_was_killed_while_it_waited_another_comes(tmp_path: Path):
    trainers = light()
    with kept(trainers):
        wait_until(lambda: len(stand_ins()) == 1, timeout_s=RUN_S)
        (first,) = stand_ins()
        first.kill()
        wait_until(lambda: first not in stand_ins(), timeout_s=RUN_S)
        another = begin(trainers, tmp_path)
        another.end()

    assert another.pid != first.pid


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_one_that_hangs_or_was_killed_begins_nothing_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    monkeypatch.setattr(warm, "BEGIN_S", 0.2)
    process = WarmProcess(stand_in(), ENVIRONMENT)
    wait_until(process.is_ready, timeout_s=RUN_S)
    process.send_signal(number)

    assert not asyncio.run(process.begin(tmp_path))
    assert process.returncode == -signal.SIGKILL


async def test_one_that_still_imports_begins_afterwards(tmp_path: Path):
    process = WarmProcess(SLOW, ENVIRONMENT)

    assert not process.is_ready() and await process.begin(tmp_path)
    process.end()


async def test_one_that_still_imports_is_ended_when_its_run_is_given_up(tmp_path: Path):
    process = WarmProcess(SLOW, ENVIRONMENT)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.begin(tmp_path), 0.2)

    assert process.returncode == -signal.SIGKILL


def test_where_runs_come_with_another_environment_the_next_one_waits_in_it(tmp_path: Path):
    hub = {name: value for name, value in ENVIRONMENT.items() if name != "HF_HUB_OFFLINE"}
    trainers = light()
    with kept(trainers):
        process = begin(trainers, tmp_path, hub)
        found = psutil.Process(process.pid).environ()
        process.end()

    assert found == hub != ENVIRONMENT


def test_a_worker_that_shuts_down_ends_what_waits_and_lets_a_run_come_to_its_end(tmp_path: Path):
    trainers = light(lasts_s=2)
    with kept(trainers) as shutdown:
        run = begin(trainers, tmp_path)
        wait_until(lambda: len(stand_ins()) == 2, timeout_s=RUN_S)
        shutdown.set()

    assert run.returncode == 0 and not stand_ins()
    assert trainers.take(ENVIRONMENT) is None


def test_what_cannot_be_started_is_no_reason_to_stop(tmp_path: Path):
    trainers = WarmTrainers([str(tmp_path / "nothing")], [ENVIRONMENT], again_s=0)
    with kept(trainers) as shutdown:
        shutdown.wait(3 * warm.LOOK_S)

        assert trainers.take(ENVIRONMENT) is None


def test_an_operator_can_do_without():
    urls = {
        "database_url": "postgresql+psycopg://nobody@localhost/nothing",
        "redis_url": "redis://",
    }

    assert warm_trainers(Settings(**urls), {}, ["cpu"]) is not None
    assert warm_trainers(Settings(**urls, warm_trainers=False), {}, ["cpu"]) is None
