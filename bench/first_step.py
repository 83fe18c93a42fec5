"""From submitting a job to its first optimizer step, on an idle worker: warm against cold.

`python -m bench.first_step` starts a whole Basin of its own with one worker, and submits tiny jobs
by turns: one that finds a process with everything imported, and one whose waiting process was
killed just before, so that it starts as it would without. A step is timed twice: when the run
says that it took it, and when a client that watches the job's stream is told. `--json FILE` leaves
the lines.
"""

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import psutil
import typer
from rich.console import Console

from bench.result import JsonFile, Line, Target, alone, compared, report
from bench.service import Course, course
from tests.chaos.cluster import Cluster, Worker, kill, running
from tests.factories import jsonl, make_model_folder
from tests.waiting import wait_until

Kind = Literal["warm", "cold"]
BODY = {
    "model": "tiny-llama",
    "seed": 7,
    "training": {"max_steps": 4, "checkpoint_steps": 4},
    "hyperparameters": {"batch_size": 4},
}
TARGET = Target(sign="≤", bound=1.5)
ROWS = 24
MIB = 1 << 20


def measure(cluster: Cluster, worker: Worker, kind: Kind, training_file: str) -> Course:
    """Time one job on a worker that has nothing else to do."""
    process = cluster.wait_for_warm(worker)
    if kind == "cold":
        kill(process)
        wait_until(lambda: not cluster.warm(worker), timeout_s=10)
    return asyncio.run(course(cluster, BODY | {"training_file": training_file}))


def memory_bytes(process: psutil.Process) -> tuple[int, int]:
    """Return what a process takes in memory, and how much of that is its own alone."""
    found = process.memory_full_info()
    return found.rss, found.uss


def lines(times: Mapping[Kind, Sequence[Course]], rss: int, uss: int) -> list[Line]:
    """Return what was found, as lines of the benchmark table."""

    def line(what: str, pick: Callable[[Course], float], target: Target | None) -> Line:
        return compared(
            what,
            "s",
            ours=[pick(each) for each in times["warm"]],
            theirs=[pick(each) for each in times["cold"]],
            against="a cold process",
            target=target,
        )

    return [
        line("submit → first step taken", lambda each: each.first_step, TARGET),
        line("submit → first step in the stream", lambda each: each.first_step_seen, TARGET),
        alone("a waiting process, resident", "MiB", [rss / MIB]),
        alone("of that its own alone", "MiB", [uss / MIB]),
    ]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Jobs of each kind.")] = 7,
    json_file: JsonFile = None,
) -> None:
    """Time warm and cold starts by turns, after one of each that is not counted."""
    times: dict[Kind, list[Course]] = {"warm": [], "cold": []}
    with tempfile.TemporaryDirectory() as models, running(Path(models)) as cluster:
        make_model_folder(Path(models) / "tiny-llama")
        worker = cluster.start_worker()
        rss, uss = memory_bytes(cluster.wait_for_warm(worker))
        training_file = cluster.upload(jsonl(ROWS))
        for _ in range(rounds + 1):
            for kind, found in times.items():
                found.append(measure(cluster, worker, kind, training_file))
                Console().print(f"{kind}: first step after {found[-1].first_step:.2f} s")
    report(lines({kind: found[1:] for kind, found in times.items()}, rss, uss), json_file)


if __name__ == "__main__":
    typer.run(main)
