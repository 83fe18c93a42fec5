"""How fast a run trains: Basin's trainer against a plain script with TRL's SFTTrainer and PEFT.

`python -m bench.throughput [--data ROWS.jsonl]` fine-tunes one base on the same chat rows three
ways, in turn: by `python -m worker.trainer`, as the service runs it; by `bench.plain_trl` at TRL's
defaults; and by that with packing. All train the same LoRA on all linear layers, with the same
learning rate and as many rows a step, with the loss on the answers. Without --model the base is a
LLaMA of 110 million random weights.

A useful token is one of a row, of its prompt or its answer; padding is none. Time is that of
training alone: what evaluations take is left out. The loss that all reach is the highest of the
lowest held-out losses of the three.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from torch import cuda
from transformers import AutoTokenizer

from app.jobs.defaults import Facts, resolve
from app.jobs.schemas import CreateJob
from app.jobs.spec import DataSpec
from bench.bases import random_llama, templated
from bench.noted import MOMENTS
from bench.result import JsonFile, Line, Target, compared, report
from demo.corpus import read_corpus
from worker.rundir import Placement, RunDir
from worker.trainer.data import encode_file

RANK = 16
SEED = 42  # TRL's default
OURS, PLAIN, PACKED = "Basin", "TRL", "TRL packed"
TARGETS = {"cpu": {PLAIN: 1.3, PACKED: 1.0}, "cuda": {PLAIN: 1.5, PACKED: 1.1}}


@dataclass(frozen=True)
class Setting:
    """What is trained, and in what portions."""

    base: Path
    rows: list[str]
    held_out: list[str]
    batch: int
    epochs: int
    max_length: int
    learning_rate: float
    evaluate_every: int
    perturbation: str
    precision: str
    clock: str
    tokens: int
    trl: Sequence[str] = ()

    @property
    def packed_rows(self) -> int:
        """How many rows of `max_length` hold as many tokens as a batch, at least one."""
        return max(1, round(self.batch * self.tokens / len(self.rows) / self.max_length))


@dataclass(frozen=True)
class Run:
    """What a run said: seconds of training at each step, and held-out losses by step."""

    seconds: dict[int, float]
    losses: dict[int, float]

    @property
    def total_s(self) -> float:
        return self.seconds[max(self.seconds)]

    def reaches_s(self, loss: float) -> float:
        """Return when the held-out loss was reached, straight between two evaluations."""
        for (before, higher), (after, lower) in pairwise(sorted(self.losses.items())):
            if lower <= loss <= higher:
                share = (higher - loss) / (higher - lower) if higher > lower else 0.0
                began, ended = self.seconds[before], self.seconds[after]
                return began + share * (ended - began)
        raise ValueError(f"the held-out loss {loss} was not reached")


def main(
    data: Annotated[
        Path | None, typer.Option(help="Chat rows; else of Python's documentation.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="A base; else a random LLaMA.")] = None,
    rows: Annotated[int, typer.Option(help="Rows to train on.")] = 256,
    held_out: Annotated[int, typer.Option(help="Rows to evaluate on.")] = 32,
    rounds: Annotated[int, typer.Option(help="Runs of each, in turn.")] = 3,
    batch: Annotated[int, typer.Option(help="Rows of a step; TRL's default.")] = 8,
    epochs: int = 1,
    max_length: int = 512,
    learning_rate: float = 2e-4,
    evaluations: Annotated[int, typer.Option(help="How many there are in a run.")] = 4,
    perturbation: Annotated[str, typer.Option(help="Basin's own; none is what TRL does.")] = "none",
    precision: Annotated[str, typer.Option(help="Basin's: auto, fp32, or bf16 as TRL's.")] = "auto",
    clock: Annotated[str, typer.Option(help="wall, or processor on a busy machine.")] = "wall",
    trl: Annotated[str, typer.Option(help="More of TRL's options, such as '--no-bf16'.")] = "",
    json_file: JsonFile = None,
) -> None:
    """Train the same rows in each of the three ways, in turn, and print ratios."""
    lines = chat_rows(data)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        base = templated(model, base) if model else random_llama(base, lines)
        setting = Setting(
            base=base,
            rows=lines[:rows],
            held_out=lines[rows : rows + held_out],
            batch=batch,
            epochs=epochs,
            max_length=max_length,
            learning_rate=learning_rate,
            evaluate_every=max(1, rows * epochs // batch // evaluations),
            perturbation=perturbation,
            precision=precision,
            clock=clock,
            tokens=useful_tokens(base, lines[:rows], Path(folder), max_length=max_length),
            trl=trl.split(),
        )
        runs: dict[str, list[Run]] = {OURS: [], PLAIN: [], PACKED: []}
        for number in range(rounds):
            for name, found in runs.items():
                place = Path(folder, f"{number} {name}")
                found.append(WAYS[name](place, setting))
                rate = f"{_rate(found[-1], setting):,.0f} tokens/s"
                losses = ", ".join(f"{loss:.3f}" for loss in found[-1].losses.values())
                Console().print(f"round {number + 1}: {name} {rate}, held-out losses {losses}")
    name = model.name if model else "random LLaMA, 110M"
    report(list(compare(runs, setting, what=name)), json_file)


def chat_rows(file: Path | None) -> list[str]:
    """Return a file's rows; without one, those that `make demo` learns from."""
    if file is not None:
        return file.read_text().rstrip("\n").split("\n")
    return [json.dumps(row) for row in read_corpus().train]


def compare(runs: dict[str, list[Run]], setting: Setting, *, what: str) -> Iterator[Line]:
    """Set tokens per second, and the time to the same held-out loss, beside TRL's."""
    targets = TARGETS["cuda" if cuda.is_available() else "cpu"]
    for against in (PLAIN, PACKED):
        target = Target(sign="≥", bound=targets[against], of="ratio")
        ours, theirs = ([_rate(run, setting) for run in runs[name]] for name in (OURS, against))
        yield compared(
            f"training, {what}", "useful tokens/s", ours=ours, theirs=theirs, against=against,
            target=target,
        )  # fmt: skip
        loss = max(min(run.losses.values()) for name in (OURS, against) for run in runs[name])
        ours, theirs = ([1 / run.reaches_s(loss) for run in runs[name]] for name in (OURS, against))
        yield compared(
            f"to held-out loss {loss:.3f}, {what}", "times a second", ours=ours, theirs=theirs,
            against=against, target=target,
        )  # fmt: skip


def _rate(run: Run, setting: Setting) -> float:
    return setting.tokens * setting.epochs / run.total_s


def by_basin(folder: Path, setting: Setting) -> Run:
    """Train as the service does: a run folder, and the trainer in a process of its own."""
    run = RunDir(folder)
    _write_rows(folder, setting)
    run.spec.write_text(spec(setting).model_dump_json())
    placement = Placement(source="folder", location=str(setting.base), revision=None)
    run.placement.write_text(placement.model_dump_json())
    _process(folder, ["bench.noted", str(folder)])
    return _timed(folder, setting.clock)


def spec(setting: Setting) -> Any:
    """Return the spec of the job that a user would submit, resolved as at submission."""
    body = CreateJob.model_validate(
        {
            "model": "base",
            "training_file": "file",
            "hyperparameters": {"n_epochs": setting.epochs, "batch_size": setting.batch},
            "peft": {"r": RANK, "dropout": 0.0},
            "perturbation": {"type": setting.perturbation},
            "training": {
                "learning_rate": setting.learning_rate,
                "scheduler": "linear",
                "warmup_ratio": 0.0,
                "max_length": setting.max_length,
                "precision": setting.precision,
                "eval_steps": setting.evaluate_every,
            },
        }
    )
    data = DataSpec(
        train_sha256="", train_rows=len(setting.rows),
        valid_sha256="", valid_rows=len(setting.held_out),
    )  # fmt: skip
    facts = Facts(job_id="ftjob-bench", context_length=setting.max_length, task="causal", data=data)
    return resolve(body, facts, seed=SEED)


def by_trl(folder: Path, setting: Setting, *, packed: bool = False) -> Run:
    """Train by the plain script."""
    _write_rows(folder, setting)
    rows = setting.packed_rows if packed else setting.batch
    asked = {
        "--rank": RANK,
        "--rows": rows,
        "--epochs": setting.epochs,
        "--max-length": setting.max_length,
        "--learning-rate": setting.learning_rate,
        "--evaluate-every": setting.evaluate_every,
        "--eval-rows": min(8, setting.batch),
    }
    options = [str(each) for option in asked.items() for each in option]
    more = ["--packing"] if packed else []
    script = ["bench.plain_trl", str(folder), str(setting.base)]
    _process(folder, [*script, *options, *more, *setting.trl])
    return _timed(folder, setting.clock)


WAYS: dict[str, Callable[[Path, Setting], Run]] = {
    OURS: by_basin,
    PLAIN: by_trl,
    PACKED: lambda folder, setting: by_trl(folder, setting, packed=True),
}


def _write_rows(folder: Path, setting: Setting) -> None:
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(f"{row}\n" for row in setting.rows))
    (folder / "valid.jsonl").write_text("".join(f"{row}\n" for row in setting.held_out))


def _process(folder: Path, module: list[str]) -> None:
    """Run a module to its end.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    with (folder / "log.txt").open("w") as log:
        command = [sys.executable, "-m", *module]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)


def _timed(folder: Path, clock: str) -> Run:
    """Add up what steps took; the time from a step to the evaluation that follows is left out."""
    seconds, losses = {0: 0.0}, {}
    before, total = 0.0, 0.0
    for line in (folder / MOMENTS).read_text().splitlines():
        moment = json.loads(line)
        if moment["type"] == "step":
            total += moment[clock] - before
            seconds[moment["step"]] = total
        elif moment["type"] == "evaluated":
            losses.setdefault(moment["step"], moment["loss"])
        before = moment[clock]
    return Run(seconds, losses)


def useful_tokens(base: Path, rows: Sequence[str], folder: Path, *, max_length: int) -> int:
    """Count the tokens of the rows, each cut where the run cuts it."""
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{row}\n" for row in rows))
    encoded = encode_file(file, AutoTokenizer.from_pretrained(base), max_length=max_length)
    return sum(len(ids) for ids in encoded.dataset["input_ids"])


if __name__ == "__main__":
    typer.run(main)
