"""Runs every bench that fits the time, and writes what came of it: `make bench`, `make bench-gpu`.

Each bench is a process of its own that leaves its lines in a file. One that fails or takes too long
is named, and the others go on; the exit code is 1 then. Whether a target is met changes no exit
code: machines differ.
"""

import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from app.embedded import end_of
from bench.result import Line, markdown, read, table

DOCS = Path("docs")
FAREWELL_S = 30  # for servers to end, and temporary folders to go
GIB = 1 << 30
SHOWN = ("fastapi", "uvicorn", "sqlalchemy", "psycopg", "torch", "transformers", "peft", "trl")

console = Console(stderr=True)


@dataclass(frozen=True)
class Bench:
    """A bench, with the sizes that fit its share of the time on two cores.

    `takes` names what of ours it is given: chat rows, or a base to train. Without a base of
    somebody's there is nothing to run where it takes one.
    """

    module: str
    minutes: float
    arguments: Sequence[str] = ()
    takes: Sequence[str] = ()

    def command(self, given: Mapping[str, Path | None]) -> list[str]:
        """Return its arguments of python's, with what it is given of what it takes."""
        found = [(name, given[name]) for name in self.takes]
        options = [word for name, path in found if path for word in (f"--{name}", str(path))]
        return ["-m", self.module, *self.arguments, *options]


# Twenty minutes on two cores in all. A new bench goes here, with its share.
ON_CPU = (
    Bench("bench.overhead", 1, ("--rank", "8", "--device", "cpu", "--rounds", "10")),
    Bench(
        "bench.throughput",
        2.5,
        ("--rows", "96", "--held-out", "16", "--rounds", "3"),
        takes=("data", "model"),
    ),
    Bench(
        "bench.throughput",
        2.5,
        ("--rows", "48", "--held-out", "8", "--rounds", "1", "--precision", "bf16"),
        takes=("data",),
    ),
    Bench("bench.first_step", 2, ("--rounds", "2")),
    Bench("bench.service_overhead", 4.5, ("--seconds", "60", "--rounds", "2")),
    Bench("bench.api", 5, ("--rounds", "1", "--picture", "docs/images/growth.svg")),
    Bench("bench.fleet", 1, ("--seconds", "10", "--rounds", "2")),
    Bench("bench.blobs", 1.5, ("--megabytes", "1024", "--rounds", "2")),
    Bench("bench.stream", 1, ("--watchers", "500", "--seconds", "20")),
)
# Nine minutes on one GPU in all.
ON_GPU = (
    Bench("bench.mfu", 1.5),
    Bench("bench.overhead", 2, ("--rank", "8", "--device", "cuda", "--rounds", "10")),
    Bench("bench.throughput", 3, ("--rows", "512", "--rounds", "2"), takes=("data",)),
    Bench(
        "bench.throughput",
        2,
        ("--rows", "512", "--rounds", "1"),
        takes=("data", "model"),
    ),
)


@dataclass
class Done:
    """What came of the benches: lines of each, and what went wrong with the others."""

    lines: dict[Bench, list[Line]] = field(default_factory=dict)
    failures: dict[Bench, str] = field(default_factory=dict)


def main(
    only: Annotated[list[str] | None, typer.Option(help="A module; may be repeated.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Those that need a CUDA device.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Chat rows to train on; else of Python's documentation.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="A small base to train too, in Hugging Face's format.")
    ] = None,
    write: Annotated[bool, typer.Option(help="Write the page under docs/.")] = True,
) -> None:
    """Run the benches one after the other, print one table and write it down."""
    if gpu and not has_cuda():
        console.print("There is no CUDA device here, so there is nothing to measure.")
        raise typer.Exit(1)
    known = ON_GPU if gpu else ON_CPU
    given = {"data": data, "model": model}
    wanted = [bench for bench in known if not only or bench.module in only]
    chosen = [bench for bench in wanted if model or "model" not in bench.takes]
    began, busy = time.monotonic(), os.getloadavg()[0]
    done = run_all(chosen, given)
    lines = [line for each in done.lines.values() for line in each]
    minutes = (time.monotonic() - began) / 60
    Console().print(table(lines, title=f"{len(lines)} lines in {minutes:.0f} minutes"))
    for bench, why in done.failures.items():
        console.print(f"{bench.module} {why}.", style="red")
    if write and not only:
        page = DOCS / ("benchmarks-gpu.md" if gpu else "benchmarks.md")
        page.write_text(page_of(chosen, done, minutes=minutes, busy=busy, gpu=gpu))
        console.print(f"Written to {page}.")
    if done.failures:
        raise typer.Exit(1)


def has_cuda() -> bool:
    """Say whether torch sees a CUDA device."""
    import torch  # noqa: PLC0415  the rest needs none

    return torch.cuda.is_available()


def run_all(benches: Sequence[Bench], given: Mapping[str, Path | None]) -> Done:
    """Run them in turn, and say how far it is."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    done = Done()
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(*columns, console=console) as progress,
    ):
        task = progress.add_task("", total=sum(bench.minutes for bench in benches))
        for number, bench in enumerate(benches):
            progress.update(task, description=f"{bench.module}, {bench.minutes:g} min")
            left = Path(folder) / f"{number}.jsonl"
            why = run(bench, left, given)
            if why is None:
                done.lines[bench] = read(left)
            else:
                done.failures[bench] = why
            progress.advance(task, bench.minutes)
    return done


def run(bench: Bench, left: Path, given: Mapping[str, Path | None]) -> str | None:
    """Run one, and return what went wrong with it, if anything did."""
    command = [sys.executable, *bench.command(given), "--json", str(left)]
    log = left.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        process.wait(timeout=2 * 60 * bench.minutes)
    except subprocess.TimeoutExpired:
        end(process)
        return f"was not ready within {2 * bench.minutes:g} minutes"
    if process.returncode != 0:
        console.print(end_of(log), markup=False)
        return f"ended with exit code {process.returncode}"
    return None


def end(process: subprocess.Popen[bytes]) -> None:
    """Have a bench stop its servers, and stop it in any case."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=FAREWELL_S)
    process.kill()
    process.wait()


def page_of(benches: Iterable[Bench], done: Done, *, minutes: float, busy: float, gpu: bool) -> str:
    """Return the page under docs/."""
    command = "make bench-gpu" if gpu else "make bench"
    parts = [
        "# Benchmarks on a GPU\n" if gpu else "# Benchmarks\n",
        f"Written by `{command}` in {minutes:.0f} minutes; run it to see your machine's numbers.\n"
        "*Ours* and *theirs* are medians of rounds that were taken in turn; *ratio* is ours to\n"
        "theirs, the median over the rounds with its quartiles in brackets. A target bounds our\n"
        "number, or the ratio where it ends with ×.\n",
        machine(busy) + (graphics() if gpu else ""),
    ]
    for bench in benches:
        places = {name: Path(name.upper()) for name in bench.takes}
        parts.append(f"## `{' '.join(['python', *bench.command(places)])}`\n")
        parts.append(
            markdown(done.lines[bench]) if bench in done.lines else f"It {done.failures[bench]}.\n"
        )
    return "\n".join(parts)


def machine(busy: float) -> str:
    """Return what it was measured on, and when."""
    memory = psutil.virtual_memory().total / GIB
    versions = ", ".join(f"{name} {version(name)}" for name in SHOWN)
    return (
        f"- {datetime.now(UTC):%Y-%m-%d}, {platform.system()} {platform.release()}\n"
        f"- {processor()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory;"
        f" {busy:.1f} processes wanted to run when it began\n"
        f"- Python {platform.python_version()}, {versions}\n"
    )


def graphics() -> str:
    """Return the GPU's name, and whether it has its own kernels."""
    import torch  # noqa: PLC0415  the rest needs none

    try:
        kernels = f"liger-kernel {version('liger-kernel')} installed"
    except PackageNotFoundError:
        kernels = "no liger-kernel"
    return f"- {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, {kernels}\n"


def processor() -> str:
    """Return the processor's name."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    typer.run(main)
