"""Does comparing steps help an agent? GiGPO, its ablations and GRPO on two small worlds.

`python -m bench.gigpo` clones a small LLaMA from random and a few expert episodes of a world, so
that success is rare but not zero; then it trains LoRA on it by every method and seed, as
`python -m worker.trainer` does for a job, and writes docs/gigpo.md with a table, curves and the
time of the parts. Runs done before are kept in --results: the command can be interrupted, and goes
on.
"""

import json
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track

from app.jobs.defaults import Facts, resolve
from app.jobs.schemas import CreateJob
from app.jobs.spec import DataSpec, EvalDone, StepDone
from app.settings import inherited_environment
from bench.agents import FIRST_HELD_OUT, World, dialogues, episodes, frozen_lakes, key_doors, untrained
from bench.result import markdown_row
from worker.rundir import LineTail, Placement, RunDir, parse_events

NONE: dict[str, Any] = {"type": "none"}
GIGPO = "GiGPO"
ARMS: dict[str, dict[str, Any]] = {
    "GRPO": {"algorithm": "grpo"},
    "GiGPO": {"algorithm": "gigpo"},
    "without the step part": {"algorithm": "gigpo", "step_weight": 0.0},
    "without the episode part": {"algorithm": "gigpo", "episode_weight": 0.0},
    "GiGPO, MGPO": {"algorithm": "gigpo"},
}
CLONED, EXPERT_SHARE, CLONE_STEPS = 512, 0.1, 300
GROUPS, GROUP_SIZE, HELD_OUT = 4, 8, 64
CONTEXT = 1536


@dataclass(frozen=True)
class Trial:
    world: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.world}-{self.arm.replace(' ', '-').replace(',', '')}-{self.seed}"


def main(
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    updates: Annotated[int, typer.Option(min=1, help="Of each run.")] = 60,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 3e-3,
    rho: Annotated[float, typer.Option(help="Of MGPO.")] = 0.05,
    world: Annotated[list[str] | None, typer.Option(help="May be repeated; both.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Runs at once, a core each.")] = 2,
    results: Annotated[Path, typer.Option()] = Path(".basin/bench/gigpo"),
) -> None:
    """Train every method on every world with every seed."""
    worlds = {each.name: each for each in (key_doors(), frozen_lakes()) if each.name in (world or (each.name,))}
    for each in worlds.values():
        cloned(each, results)
    trials = [Trial(*each) for each in product(worlds, ARMS, range(1, seeds + 1))]
    with ThreadPoolExecutor(processes) as pool:
        def go(trial: Trial) -> Path:
            return trained(trial, worlds[trial.world], results, updates=updates, rate=rate, rho=rho)
        for folder in track(pool.map(go, trials), total=len(trials)):
            pass
    for trial in trials:
        run = RunDir(results / trial.name)
        evals = [e.metrics["valid_success_rate"] for e in events(run) if isinstance(e, EvalDone)]
        steps = [e.metrics for e in events(run) if isinstance(e, StepDone)]
        share = sum(s["advantage_seconds"] for s in steps) / sum(s["step_seconds"] for s in steps)
        roll = sum(s["rollout_seconds"] for s in steps) / sum(s["step_seconds"] for s in steps)
        print(trial.name, [round(e, 2) for e in evals], f"adv {share:.2%} roll {roll:.1%} step {statistics.median(s['step_seconds'] for s in steps):.2f}s", "success", round(steps[0]["train_success_rate"],2), round(steps[-1]["train_success_rate"],2))


def cloned(world: World, results: Path) -> Path:
    """Return the folder of the agent that all runs of a world start from; made once."""
    folder = results / f"{world.name}-agent"
    if folder.exists():
        return folder
    base = untrained(world, results / f"{world.name}-untrained")
    run = written(
        results / f"{world.name}-cloning",
        base,
        train=[*dialogues(world, CLONED, expert_share=EXPERT_SHARE, seed=0)],
        valid=[],
        body={
            "peft": {"method": "full"},
            "perturbation": NONE,
            "training": {"max_steps": CLONE_STEPS, "learning_rate": 3e-3, "max_length": CONTEXT},
            "hyperparameters": {"batch_size": 16},
        },
        seed=0,
    )
    run_it(run)
    shutil.copytree(run.adapter, folder)
    return folder


def trained(trial: Trial, world: World, results: Path, *, updates: int, rate: float, rho: float) -> Path:
    folder = results / trial.name
    if (folder / "adapter").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    environment = {"name": world.name, "args": world.arguments, "max_turns": world.max_turns}
    policy = ARMS[trial.arm] | {
        "environment": environment,
        "group_size": GROUP_SIZE,
        "max_completion_tokens": 6,
        "kl": 0.01,
        "hyperparameters": {"batch_size": GROUPS},
    }
    run = written(
        folder,
        results / f"{world.name}-agent",
        train=episodes(256),
        valid=episodes(HELD_OUT, first=FIRST_HELD_OUT),
        body={
            "method": {"type": "reinforcement", "reinforcement": policy},
            "perturbation": {"type": "mgpo", "rho": rho} if "MGPO" in trial.arm else NONE,
            "peft": {"r": 8},
            "training": {
                "max_steps": updates,
                "learning_rate": rate,
                "scheduler": "constant",
                "max_length": CONTEXT,
                "micro_batch_size": 32,
                "eval_steps": max(updates // 6, 1),
                "checkpoint_steps": updates,
            },
        },
        seed=trial.seed,
    )
    run_it(run)
    return folder


def written(folder: Path, base: Path, *, train: Sequence[Any], valid: Sequence[Any], body: dict[str, Any], seed: int) -> RunDir:
    """Write a run folder for what a job with this body would come to."""
    folder.mkdir(parents=True)
    run = RunDir(folder)
    run.train.write_text("".join(json.dumps(row) + "\n" for row in train))
    if valid:
        run.valid.write_text("".join(json.dumps(row) + "\n" for row in valid))
    data = DataSpec(train_sha256="0" * 64, train_rows=len(train), valid_sha256="0" * 64 if valid else None, valid_rows=len(valid))
    asked = CreateJob.model_validate({"model": base.name, "training_file": "file-x"} | ({"validation_file": "file-y"} if valid else {}) | body)
    facts = Facts(job_id="ftjob-bench", context_length=2048, task="causal", data=data)
    run.spec.write_text(resolve(asked, facts, seed=seed).model_dump_json())
    run.placement.write_text(Placement(source="folder", location=str(base.resolve()), revision=None).model_dump_json())
    return run


def run_it(run: RunDir) -> None:
    with run.log.open("wb") as log:
        subprocess.run([sys.executable, "-m", "worker.trainer", str(run.path)], stdout=log, stderr=log, check=True,
                       env=inherited_environment() | {"OMP_NUM_THREADS": "1", "DISABLE_MLFLOW_INTEGRATION": "TRUE"})


def events(run: RunDir) -> Iterator[Any]:
    tail = LineTail(run.events)
    while lines := tail.read():
        yield from parse_events(lines)


if __name__ == "__main__":
    typer.run(main)
