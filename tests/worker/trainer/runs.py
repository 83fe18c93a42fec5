"""Makes run folders, trains them in this process or in one of their own, and reads what came."""

import resource
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.jobs.spec import TrainEvent, TrainSpec
from tests.factories import chat_row, to_jsonl
from worker.rundir import LineTail, Placement, RunDir, parse_events

SPEC: dict[str, Any] = {
    "version": 1,
    "job_id": "ftjob-test",
    "base_model": "tiny-llama",
    "task": "causal",
    "method": "supervised",
    "dpo": None,
    "reinforcement": None,
    "seed": 7,
    "peft": {
        "method": "lora",
        "r": 4,
        "alpha": 8.0,
        "dropout": 0.0,
        "target_modules": "all-linear",
        "lr_ratio": None,
        "from": None,
    },
    "perturbation": {
        "type": "mgpo",
        "rho": 0.05,
        "beta": 0.9,
        "mu": None,
        "norm": "module",
        "apn": "relative",
        "start_step": 0,
    },
    "training": {
        "n_epochs": 1,
        "max_steps": None,
        "batch_size": 4,
        "micro_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.1,
        "scheduler": "cosine",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_length": 128,
        "precision": "fp32",
        "gradient_checkpointing": False,
        "eval_steps": 3,
        "checkpoint_steps": 3,
        "early_stopping": None,
    },
    "evaluation": {"sharpness": None},
    "resources": {"gpus": 1, "zero_stage": 0},
    "budget": {"max_duration_s": None, "max_steps": None},
    "data": {"train_sha256": "0" * 64, "train_rows": 24, "valid_sha256": None, "valid_rows": 0},
    "total_steps": 6,
}


EVEN_ODD = [
    {"prompt": f"Is {n} even or odd?", "completion": "odd" if n % 2 else "even"} for n in range(24)
]
LABELLED = [
    {"text": "aaaa"[: n % 3 + 1] if n % 2 else "zzz zz"[: n % 4 + 2], "label": n % 2}
    for n in range(24)
]
TASKS = {"seq2seq": ("tiny-t5", EVEN_ODD), "classification": ("tiny-bert", LABELLED)}


def make_run(
    path: Path,
    model: Path,
    *,
    rows: Sequence[dict[str, Any]] | None = None,
    valid: Sequence[dict[str, Any]] = (),
    **changes: dict[str, Any],
) -> RunDir:
    """Write a run folder; `changes` are merged into the spec, group by group."""
    rows = [chat_row(number) for number in range(24)] if rows is None else rows
    path.mkdir(parents=True)
    run = RunDir(path)
    run.train.write_bytes(to_jsonl(list(rows)))
    if valid:
        run.valid.write_bytes(to_jsonl(list(valid)))
    spec = {
        key: value | changes.get(key, {}) if isinstance(value, dict) else changes.get(key, value)
        for key, value in SPEC.items()
    }
    run.spec.write_text(TrainSpec.model_validate(spec).model_dump_json())
    placement = Placement(source="folder", location=str(model), revision=None)
    run.placement.write_text(placement.model_dump_json())
    return run


def run_of(task: str, models_dir: Path, path: Path, **changes: Any) -> RunDir:
    """Write the folder of a run on a task's tiny model and rows."""
    model, rows = TASKS[task]
    changes = {"rows": rows, "valid": rows[:8]} | changes
    return make_run(path, models_dir / model, task=task, **changes)


def train_here(run: RunDir, stop: threading.Event | None = None) -> RunDir:
    """Train in this process: no start-up cost, and errors surface."""
    from worker.trainer.recipe import train

    train(run, stop or threading.Event())
    return run


def train_apart(run: RunDir, *, limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """Train in a process of its own, as the supervisor does; `limit_bytes` is all it can map."""
    command = [sys.executable, "-m", "worker.trainer", str(run.path)]
    limit = partial(resource.setrlimit, resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=limit if limit_bytes else None,
    )


def events(run: RunDir) -> list[TrainEvent]:
    return list(parse_events(LineTail(run.events).read()))


def of_type(run: RunDir, kind: type) -> list[Any]:
    return [event for event in events(run) if isinstance(event, kind)]


def adapter_bytes(run: RunDir) -> bytes:
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def stopping_at(step: int, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return a stop request that arrives while `step` is computed."""
    from worker.trainer.report import Reporter

    stop = threading.Event()
    original = Reporter.on_step_begin

    def on_step_begin(self: Reporter, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step + 1 == step:
            stop.set()
        original(self, args, state, control, **more)

    monkeypatch.setattr(Reporter, "on_step_begin", on_step_begin)
    return stop
