"""Does comparing steps help an agent? GiGPO, its ablations and GRPO in two small worlds.

`python -m bench.gigpo` clones a small LLaMA from random and a few expert episodes of a world, so
that success is rare but not zero. From there LoRA is trained by every method with every seed, as
`python -m worker.trainer` trains a job's. It writes docs/gigpo.md: a table, curves, and what the
parts of a step take. Runs done before are kept in --results: the command can be interrupted, and
goes on.
"""

import itertools
import json
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib import pyplot as plt
from rich.progress import track

from app.jobs.defaults import Facts, resolve
from app.jobs.schemas import CreateJob
from app.jobs.spec import DataSpec, EvalDone, StepDone
from app.settings import inherited_environment
from bench.agents import FIRST_HELD_OUT, World, dialogues, episodes, untrained, worlds
from bench.result import markdown_row
from bench.tables import spread
from worker.launcher import train_environment
from worker.rundir import LineTail, Placement, RunDir, parse_events

GIGPO, GRPO, MGPO = "GiGPO", "GRPO", "GiGPO with MGPO"
# Without the step part GiGPO is GRPO, bit for bit: a test holds it.
METHODS: dict[str, dict[str, Any]] = {
    GIGPO: {"algorithm": "gigpo"},
    GRPO: {"algorithm": "grpo"},
    "without the episode part": {"algorithm": "gigpo", "episode_weight": 0.0},
    MGPO: {"algorithm": "gigpo"},
}
NONE = {"type": "none"}
CLONED_EPISODES, CLONE_RATE = 1024, 3e-3
TRAINED_EPISODES, HELD_OUT_EPISODES = 256, 64
GROUPS, GROUP_SIZE, EVALUATIONS = 4, 8, 6
PARTS = {"rollouts": "rollout_seconds", "advantages": "advantage_seconds", "a step": "step_seconds"}
PAGE = """\
# Agents: GiGPO against GRPO at small scale

Two worlds with a reward at the goal alone: `key-door` (4 × 2, a dozen actions at most) and
Gymnasium's FrozenLake (4 × 4, not slippery, ten actions at most), another map in each episode. The
agent is a LLaMA of {parameters} parameters that has cloned {cloned} episodes, of which the expert
played {expert_share:.0%}. Each run then trains LoRA (r 8) for {updates} updates at learning rate
{rate:g}, {groups} groups of {size} rollouts each, an update for each batch of rollouts; {seeds}
seeds. Success is that of {held_out} held-out episodes, sampled as in training. GiGPO without the
step part is GRPO, bit for bit, and has no row of its own.

{worlds}
## What the parts of a step take

Seconds of an update, the median over all runs; the advantages take {share:.2%} of it ({paper} in
the paper, on a 1.5B model).

{parts}

Made by `python -m bench.gigpo` ({machine}; torch {torch}).
"""


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    updates: int
    rate: float
    rho: float
    expert_share: float
    results: Path


@dataclass(frozen=True)
class Trial:
    """A run: a method with a seed in a world."""

    world: World
    method: str
    seed: int
    setting: Setting

    @property
    def run(self) -> RunDir:
        setting = self.setting
        ways = f"{setting.updates}, {setting.rate:g}, {setting.rho:g}, {setting.expert_share:g}"
        name = f"{self.world.name}, {self.method}, {self.seed}, {ways}"
        return RunDir(setting.results / name.replace(", ", "-").replace(" ", "-"))

    @cached_property
    def success(self) -> dict[int, float]:
        """Return the held-out success rate by step."""
        found = [event for event in events(self.run) if isinstance(event, EvalDone)]
        return {event.step: event.metrics["valid_success_rate"] for event in found}

    @cached_property
    def steps(self) -> list[dict[str, float]]:
        return [event.metrics for event in events(self.run) if isinstance(event, StepDone)]


def main(
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    updates: Annotated[int, typer.Option(min=1, help="Of each run.")] = 60,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 3e-3,
    rho: Annotated[float, typer.Option(help="Of MGPO.")] = 0.05,
    expert_share: Annotated[float, typer.Option(help="Of the episodes that are cloned.")] = 0.1,
    world: Annotated[list[str] | None, typer.Option(help="May be repeated; all.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="May be repeated; all.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Runs at once, a core each.")] = 2,
    results: Annotated[Path, typer.Option()] = Path(".basin/bench/gigpo"),
    docs: Annotated[Path, typer.Option()] = Path("docs"),
) -> None:
    """Train by every method in every world with every seed, and write docs/gigpo.md."""
    setting = Setting(updates, rate, rho, expert_share, results)
    chosen = [found for name, found in worlds().items() if name in (world or worlds())]
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(partial(cloned, setting=setting), chosen))
        trials = [
            Trial(where, how, seed, setting)
            for seed, where, how in itertools.product(
                range(1, seeds + 1), chosen, method or METHODS
            )
        ]
        list(track(pool.map(train, trials), total=len(trials), description="Training"))
    for where in chosen:
        curves(where, [trial for trial in trials if trial.world is where], docs / "images")
    (docs / "gigpo.md").write_text(page(trials, setting, seeds))


def cloned(world: World, setting: Setting) -> Path:
    """Return the folder of the agent that all runs in a world start from; it is made once."""
    folder = setting.results / f"{world.name}-agent"
    if folder.exists():
        return folder
    run = RunDir(setting.results / f"{world.name}-cloning")
    shutil.rmtree(run.path, ignore_errors=True)
    body = {
        "peft": {"method": "full"},
        "perturbation": NONE,
        "training": {"max_steps": world.clone_steps, "learning_rate": CLONE_RATE},
        "hyperparameters": {"batch_size": 16},
    }
    rows = [*dialogues(world, CLONED_EPISODES, expert_share=setting.expert_share)]
    base = untrained(world, setting.results / f"{world.name}-untrained")
    write_run(run, base, body, train=rows, valid=[], seed=0)
    run_trainer(run)
    shutil.copytree(run.adapter, folder)
    return folder


def train(trial: Trial) -> None:
    """Train, unless that was done before."""
    run, setting = trial.run, trial.setting
    if run.adapter.exists():
        return
    shutil.rmtree(run.path, ignore_errors=True)
    policy = METHODS[trial.method] | {
        "environment": trial.world.asked,
        "group_size": GROUP_SIZE,
        "max_completion_tokens": 4,
        "hyperparameters": {"batch_size": GROUPS},
    }
    body = {
        "method": {"type": "reinforcement", "reinforcement": policy},
        "perturbation": {"type": "mgpo", "rho": setting.rho} if trial.method == MGPO else NONE,
        "training": {
            "max_steps": setting.updates,
            "learning_rate": setting.rate,
            "scheduler": "constant",
            "micro_batch_size": GROUPS * GROUP_SIZE,
            "eval_steps": max(setting.updates // EVALUATIONS, 1),
            "checkpoint_steps": setting.updates,
        },
    }
    agent = setting.results / f"{trial.world.name}-agent"
    held_out = episodes(HELD_OUT_EPISODES, first=FIRST_HELD_OUT)
    write_run(run, agent, body, train=episodes(TRAINED_EPISODES), valid=held_out, seed=trial.seed)
    run_trainer(run)


def write_run(
    run: RunDir,
    base: Path,
    body: dict[str, Any],
    *,
    train: Sequence[Any],
    valid: Sequence[Any],
    seed: int,
) -> None:
    """Write the folder of a run, as a job with this body would come to it."""
    run.path.mkdir(parents=True)
    for path, rows in ((run.train, train), (run.valid, valid)):
        if rows:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSpec(
        train_sha256="",
        train_rows=len(train),
        valid_sha256="" if valid else None,
        valid_rows=len(valid),
    )
    files = {"training_file": "train", "validation_file": "valid" if valid else None}
    asked = CreateJob.model_validate({"model": base.name} | files | body)
    facts = Facts(job_id="ftjob-bench", context_length=1024, task="causal", data=data)
    run.spec.write_text(resolve(asked, facts, seed=seed).model_dump_json())
    placement = Placement(source="folder", location=str(base.resolve()), revision=None)
    run.placement.write_text(placement.model_dump_json())


def run_trainer(run: RunDir) -> None:
    """Train in a process of its own, on one core."""
    environment = train_environment(inherited_environment(), devices=["cpu"], offline=True)
    command = [sys.executable, "-m", "worker.trainer", str(run.path)]
    with run.log.open("wb") as log:
        subprocess.run(
            command, stdout=log, stderr=log, check=True, env=environment | {"OMP_NUM_THREADS": "1"}
        )


def events(run: RunDir) -> Iterator[Any]:
    """Yield what a run has said."""
    tail = LineTail(run.events)
    while lines := tail.read():
        yield from parse_events(lines)


def page(trials: Sequence[Trial], setting: Setting, seeds: int) -> str:
    """Return the page of all runs."""
    took = {name: [step[key] for trial in trials for step in trial.steps]
            for name, key in PARTS.items()}  # fmt: skip
    parts = [[name, f"{statistics.median(values):.4f}"] for name, values in took.items()]
    agent = setting.results / f"{trials[0].world.name}-cloning" / "events.jsonl"
    told = json.loads(agent.read_text().partition("\n")[0])
    sections = [
        f"## {world}\n\n{table([t for t in trials if t.world.name == world])}\n\n"
        f"![Success in {world}](images/gigpo-{world}.png)\n"
        for world in dict.fromkeys(trial.world.name for trial in trials)
    ]
    return PAGE.format(
        parameters=f"{told['total_parameters']:,}",
        cloned=CLONED_EPISODES,
        expert_share=setting.expert_share,
        updates=setting.updates,
        rate=setting.rate,
        groups=GROUPS,
        size=GROUP_SIZE,
        seeds=seeds,
        held_out=HELD_OUT_EPISODES,
        worlds="\n".join(sections),
        share=sum(took["advantages"]) / sum(took["a step"]),
        paper="0.15 %",
        parts=as_table(["part", "s"], parts),
        machine=f"{platform.machine()}, a core for each run",
        torch=torch.__version__,
    )


def table(trials: Sequence[Trial]) -> str:
    """Return what each method came to: success at the end, and over all evaluations."""
    rows = []
    for name in dict.fromkeys(trial.method for trial in trials):
        runs = [trial for trial in trials if trial.method == name]
        steps = sorted(runs[0].success)
        means = [statistics.fmean(list(run.success.values())[1:]) for run in runs]
        rows.append(
            [
                name,
                spread([run.success[steps[0]] for run in runs]),
                spread([run.success[steps[-1]] for run in runs]),
                spread(means),
                spread([_over(run, "train_invalid_actions") for run in runs]),
                spread([_over(run, "train_shared_states") for run in runs]),
            ]
        )
    head = ["method", "at the start", "at the end", "mean over the run", "invalid actions",
            "shared states"]  # fmt: skip
    return as_table(head, rows)


def _over(trial: Trial, name: str) -> float:
    return statistics.fmean(step[name] for step in trial.steps)


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(markdown_row(line) for line in lines)


def curves(world: World, trials: Sequence[Trial], folder: Path) -> None:
    """Draw held-out success over updates: the mean over seeds, and all seeds as a band."""
    figure, axis = plt.subplots(figsize=(6.4, 3.8))
    for name in dict.fromkeys(trial.method for trial in trials):
        runs = [list(trial.success.values()) for trial in trials if trial.method == name]
        steps = list(trials[0].success)
        columns = list(zip(*runs, strict=True))
        means = [statistics.fmean(each) for each in columns]
        (line,) = axis.plot(steps, means, label=name, lw=1.4)
        low, high = [min(each) for each in columns], [max(each) for each in columns]
        axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.12, lw=0)
    axis.set(xlabel="update", ylabel="held-out success", title=world.name, ylim=(0, 1))
    axis.legend(fontsize=8)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"gigpo-{world.name}.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
