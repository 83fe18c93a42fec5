"""`python -m bench.noted RUN_DIR`: the trainer as the service runs it, with notes for a bench."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from app.jobs.spec import EvalDone, Started, StepDone, TrainEvent
from worker.rundir import RunDir
from worker.trainer.__main__ import main

MOMENTS = "moments.jsonl"


def note(folder: Path, **what: Any) -> None:
    """Write down what happened, by the wall clock and by the time that the processor worked."""
    clocks = {"wall": time.time(), "processor": time.process_time()}
    with (folder / MOMENTS).open("a") as file:
        file.write(json.dumps(clocks | what) + "\n")


def note_event(folder: Path, event: TrainEvent) -> None:
    match event:
        case Started():
            note(folder, type="began")
        case StepDone(step=step):
            note(folder, type="step", step=step)
        case EvalDone(step=step, metrics=metrics):
            note(folder, type="evaluated", step=step, loss=metrics["valid_loss"])


if __name__ == "__main__":
    say = RunDir.append_event

    def noted(self: RunDir, event: TrainEvent) -> None:
        note_event(self.path, event)
        say(self, event)

    RunDir.append_event = noted  # type: ignore[method-assign]
    sys.exit(main())
