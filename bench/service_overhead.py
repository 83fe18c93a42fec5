"""What the service adds to a run: a job from submitting to its end, against its run folder alone.

`python -m bench.service_overhead` starts a whole Basin of its own, finds how many steps fill
`--seconds`, and then trains the same by turns: as a job, from the call that submits it to the
stream's last message, and as `python -m worker.trainer` on a copy of that job's run folder, from
its start to its exit. The second line leaves both ends out: from the first step to the last.
"""

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from app.jobs.spec import StepDone
from app.settings import inherited_environment
from bench.result import JsonFile, Line, Target, compared, report
from bench.service import Course, course
from tests.chaos.cluster import Cluster, Worker, running
from tests.factories import jsonl, make_model_folder
from tests.waiting import wait_until
from worker.launcher import train_environment
from worker.rundir import LineTail, RunDir, parse_events

ROWS = 200
TRIAL_STEPS = 100
TARGET = Target(sign="≤", bound=1.05, of="ratio")
ALONE = "`python -m worker.trainer` alone"


@dataclass(frozen=True)
class Took:
    """Seconds of a run: all of it, and from its first step to its last."""

    whole: float
    steps: float


def job(training_file: str, steps: int) -> dict[str, Any]:
    return {
        "model": "tiny-llama",
        "seed": 7,
        "training_file": training_file,
        "hyperparameters": {"batch_size": 16},
        "training": {"max_steps": steps},
    }


def took(found: Course) -> Took:
    return Took(found.ended, found.last_step - found.first_step)


async def course_and_folder(
    cluster: Cluster, worker: Worker, body: dict[str, Any], kept: RunDir
) -> Course:
    """Train a job, and keep what its run folder held when its run began."""
    training = asyncio.create_task(course(cluster, body))
    while not kept.path.exists():
        await asyncio.sleep(0.1)
        for events in (worker.data / "runs").glob("*/attempt-1/events.jsonl"):
            _keep(RunDir(events.parent), kept)
    return await training


def _keep(run: RunDir, kept: RunDir) -> None:
    kept.path.mkdir()
    for given in (run.spec, run.placement, run.train):
        shutil.copy(given, kept.path)


def alone(kept: RunDir, folder: Path) -> Took:
    """Train a copy of a run folder as the service would, without it."""
    shutil.copytree(kept.path, folder)
    run = RunDir(folder)
    environment = inherited_environment() | {"OMP_NUM_THREADS": "1"}
    with run.log.open("wb") as log:
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "worker.trainer", str(folder)],
            env=train_environment(environment, devices=["cpu"], offline=True),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=True,
        )
        whole = time.monotonic() - began
    said = parse_events(LineTail(run.events).read(limit=1 << 30))
    steps = [event.at for event in said if isinstance(event, StepDone)]
    return Took(whole, steps[-1] - steps[0])


def lines(ours: list[Took], theirs: list[Took], *, seconds: float, warm: bool) -> list[Line]:
    """Return what was found, as lines of the benchmark table."""
    name = f"a run of {seconds:g} s as a job{'' if warm else ', cold'}"
    return [
        compared(
            name,
            "s",
            ours=[each.whole for each in ours],
            theirs=[each.whole for each in theirs],
            against=ALONE,
            target=TARGET,
        ),
        compared(
            f"{name}, first step to last",
            "s",
            ours=[each.steps for each in ours],
            theirs=[each.steps for each in theirs],
            against=ALONE,
        ),
    ]


def main(
    seconds: Annotated[float, typer.Option(min=1, help="Of training, about.")] = 60,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each kind.")] = 5,
    warm: Annotated[bool, typer.Option(help="Let the worker keep a warm trainer.")] = True,
    json_file: JsonFile = None,
) -> None:
    """Train the same with and without the service by turns, and compare."""
    ours: list[Took] = []
    theirs: list[Took] = []
    with tempfile.TemporaryDirectory() as scratch, running(Path(scratch) / "models") as cluster:
        make_model_folder(cluster.models / "tiny-llama")
        worker = cluster.start_worker(warm=warm)
        training_file = cluster.upload(jsonl(ROWS))
        trial = took(asyncio.run(course(cluster, job(training_file, TRIAL_STEPS))))
        steps = max(2, round(seconds * (TRIAL_STEPS - 1) / trial.steps))
        for number in range(rounds):
            kept = RunDir(Path(scratch) / f"given-{number}")
            rest(cluster, worker, warm=warm)
            body = job(training_file, steps)
            ours.append(took(asyncio.run(course_and_folder(cluster, worker, body, kept))))
            rest(cluster, worker, warm=warm)
            theirs.append(alone(kept, Path(scratch) / f"alone-{number}"))
            Console().print(
                f"{steps} steps: {ours[-1].whole:.1f} s, {theirs[-1].whole:.1f} s alone"
            )
    report(lines(ours, theirs, seconds=seconds, warm=warm), json_file)


def rest(cluster: Cluster, worker: Worker, *, warm: bool) -> None:
    """Wait until the worker has nothing to do."""
    wait_until(lambda: not list((worker.data / "runs").glob("*/*")), timeout_s=60)
    if warm:
        cluster.wait_for_warm(worker)


if __name__ == "__main__":
    typer.run(main)
