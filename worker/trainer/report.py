"""Turns what the Trainer does into the run's events."""

import math
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from app.jobs.spec import CheckpointSaved, EvalDone, StepDone, Warned
from worker.rundir import RunDir
from worker.trainer import distributed
from worker.trainer.faults import diverged
from worker.trainer.perturbations import Perturbation

RENAMED = {
    "loss": "train_loss",  # at the perturbed weights under MGPO: where the gradient is
    "mean_token_accuracy": "train_mean_token_accuracy",
    "rewards_chosen": "train_rewards_chosen",
    "rewards_rejected": "train_rewards_rejected",
    "rewards_margin": "train_rewards_margin",
    "rewards_accuracy": "train_rewards_accuracy",
    "reward_mean": "train_reward_mean",
    "reward_std": "train_reward_std",
    "success_rate": "train_success_rate",
    "kl": "train_kl",
    "entropy": "train_entropy",
    "completion_length": "train_completion_length",
    "clip_ratio/region_mean": "train_clip_share",
    "frac_reward_zero_std": "train_groups_without_signal",
    "episode_turns": "train_episode_turns",
    "invalid_actions": "train_invalid_actions",
    "failed_episodes": "train_failed_episodes",
    "shared_states": "train_shared_states",
    "rollout_seconds": "rollout_seconds",
    "advantage_seconds": "advantage_seconds",
    "step_time": "step_seconds",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "eval_loss": "valid_loss",  # at the clean weights, always
    "eval_mean_token_accuracy": "valid_mean_token_accuracy",
    "eval_accuracy": "valid_accuracy",
    "eval_f1": "valid_f1",
    "eval_mcc": "valid_mcc",
    "eval_exact_match": "valid_exact_match",
    "eval_rewards_chosen": "valid_rewards_chosen",
    "eval_rewards_rejected": "valid_rewards_rejected",
    "eval_rewards_margin": "valid_rewards_margin",
    "eval_rewards_accuracy": "valid_rewards_accuracy",
    "eval_reward_mean": "valid_reward_mean",
    "eval_success_rate": "valid_success_rate",
    "eval_completion_length": "valid_completion_length",
    "eval_episode_turns": "valid_episode_turns",
    "eval_invalid_actions": "valid_invalid_actions",
    "eval_failed_episodes": "valid_failed_episodes",
    "eval_sharpness_worst": "valid_sharpness_worst",
    "eval_sharpness_mean": "valid_sharpness_mean",
}


class Reporter(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Says each step, evaluation and checkpoint; stops the run when asked or when it diverges.

    `max_steps` and `ends_at`, in seconds of the monotonic clock, are its budget: there it ends, and
    delivers what it has.
    """

    def __init__(
        self,
        run: RunDir,
        stop: threading.Event,
        *,
        max_steps: int | None,
        ends_at: float | None,
        out_of_patience: Callable[[], bool],
        export: Callable[[Path, dict[str, float]], None],
        perturbation: Callable[[], Perturbation | None],
    ) -> None:
        self.run = run
        self.metrics: dict[str, float] = {}
        self.saved_step = self.evaluated_step = -1
        self.stopped = False
        self._stop = stop
        self._max_steps = max_steps
        self._ends_at = ends_at
        self._out_of_patience = out_of_patience
        self._export = export
        self._perturbation = perturbation
        self._losses: list[float] = []
        self._began = time.monotonic()
        self._tokens = 0

    def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self._began = time.monotonic()
        self._tokens = int(state.num_input_tokens_seen)

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        late = self._ends_at is not None and time.monotonic() >= self._ends_at
        self.stopped, late = distributed.agree(self._stop.is_set(), late)
        if self.stopped:
            control.should_save = True
            control.should_training_stop = True
        elif late or state.global_step == self._max_steps:
            self._end_at_budget(state, control, of="time" if late else "steps")

    def _end_at_budget(self, state: Any, control: Any, *, of: str) -> None:
        control.should_training_stop = True
        if state.global_step < state.max_steps:
            message = (
                f"The budget of {of} is spent at step {state.global_step} of {state.max_steps}: the"
                " run ends here, and delivers the adapter it has"
            )
            self.run.append_event(Warned(at=time.time(), code="budget_spent", message=message))

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any], **_: Any) -> None:
        step = int(state.global_step)
        metrics = _ours(logs)
        if _tells_of_evaluation(metrics):
            self.evaluated_step = step
            self.run.append_event(EvalDone(at=time.time(), step=step, metrics=metrics))
        elif "train_loss" in metrics:
            metrics |= self._measured(state)
            self.run.append_event(
                StepDone(at=time.time(), step=step, epoch=float(state.epoch), metrics=metrics)
            )
            self._watch(step, metrics["train_loss"])
        self.metrics |= metrics

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Export the adapter; only then the checkpoint counts, as what resumes from it does not.

        Where the run was stopped no adapter is owed. There the checkpoint counts first: the time
        to save it is short.
        """
        step = self.saved_step = int(state.global_step)
        if not distributed.is_first():
            return
        ends = step in (state.max_steps, self._max_steps) or self._out_of_patience()
        if self.stopped and not ends and step % args.save_steps:
            self._say_saved(step, None)
        folder = self.run.export(step)
        self._export(folder, self.metrics)
        self._say_saved(step, folder)

    def _say_saved(self, step: int, export: Path | None) -> None:
        name = export.relative_to(self.run.path).as_posix() if export else None
        self.run.append_event(
            CheckpointSaved(at=time.time(), step=step, folder=name, metrics=self.metrics)
        )
        self.run.complete_checkpoint(step)

    def recall(self, state: Any) -> None:
        """Take up the metrics of a run that is over; what it did last need not be repeated."""
        self.saved_step = int(state.global_step)
        for logs in state.log_history:
            found = _ours(logs)
            self.metrics |= found
            if _tells_of_evaluation(found):
                self.evaluated_step = int(logs["step"])

    def _measured(self, state: Any) -> dict[str, float]:
        elapsed = time.monotonic() - self._began
        tokens = int(state.num_input_tokens_seen) - self._tokens
        measured = {"tokens_per_second": tokens / elapsed, "memory_bytes": float(peak_bytes())}
        perturbation = self._perturbation()
        return measured | (perturbation.metrics() if perturbation else {})

    def _watch(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise diverged(step, self._losses)
        self._losses.append(loss)


def peak_bytes() -> int:
    """Return the most memory that this process held: allocated on the GPU, else resident."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _ours(logs: dict[str, Any]) -> dict[str, float]:
    """Return the Trainer's metrics under our names, without those that nobody asked for."""
    found = {ours: logs.get(theirs) for theirs, ours in RENAMED.items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def _tells_of_evaluation(metrics: dict[str, float]) -> bool:
    return any(name.startswith("valid_") for name in metrics)


def replace_folder(temporary: Path, final: Path) -> None:
    """Let a finished folder appear at once, in place of what an earlier attempt left."""
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
