"""Early stopping: keeps the weights of the best evaluation, and ends a run that gets no better."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from app.jobs.spec import EarlyStoppingSpec
from worker.trainer import distributed

NOTES = "best.json"


class Best(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """The best evaluation so far. `folder` holds its weights and goes into every checkpoint."""

    def __init__(
        self, asked: EarlyStoppingSpec, folder: Path, keep: Callable[[Path], None]
    ) -> None:
        self.loss = math.inf
        self.step = 0
        self.stopped = False
        self.folder = folder
        self._asked = asked
        self._keep = keep
        self._waited = 0

    def on_evaluate(
        self, _args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any
    ) -> None:
        """Judge the evaluation; that of the base, before the first step, is none of the run's."""
        if state.global_step == 0:
            return
        if metrics["eval_loss"] < self.loss - self._asked.min_delta:
            self.loss, self.step, self._waited = metrics["eval_loss"], state.global_step, 0
            if distributed.is_first():
                self.folder.mkdir(exist_ok=True)
                self._keep(self.folder)
        else:
            self._waited += 1
        if self.out_of_patience:
            control.should_training_stop = self.stopped = True

    @property
    def out_of_patience(self) -> bool:
        """Whether as many evaluations as asked were no better."""
        return self._waited >= self._asked.patience

    def save_state(self, checkpoint: Path) -> None:
        if self.step:
            notes = {"loss": self.loss, "step": self.step, "waited": self._waited}
            shutil.copytree(self.folder, checkpoint / self.folder.name, dirs_exist_ok=True)
            (checkpoint / self.folder.name / NOTES).write_text(json.dumps(notes))

    def load_state(self, checkpoint: Path) -> None:
        """Go on from there; what came after the checkpoint is forgotten."""
        saved = checkpoint / self.folder.name
        if saved.exists():
            notes = json.loads((saved / NOTES).read_bytes())
            self.loss, self.step, self._waited = notes["loss"], notes["step"], notes["waited"]
            if distributed.is_first():
                shutil.copytree(saved, self.folder, dirs_exist_ok=True)
            self.stopped = self.out_of_patience
