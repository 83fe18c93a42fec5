"""What goes wrong in a run becomes a code and a sentence that says what to do."""

import errno
import re
from pathlib import Path

import pytest
import torch

from app.jobs.spec import Failed, TrainSpec
from tests.worker.trainer.runs import SPEC, events, make_run, train_apart
from worker.trainer.faults import RunError, diverged, explain


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", "micro_batch_size"),
        (MemoryError(), "out_of_memory", "micro_batch_size"),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
            "out_of_memory",
            "max_length",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", "free space"),
        (
            RuntimeError(
                "[enforce fail at inline_container] PytorchStreamWriter failed writing file"
            ),
            "disk_full",
            "free space",
        ),
        (RuntimeError("basic_ios::clear: iostream error"), "disk_full", "free space"),
        (RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1"), "rank_lost", "is gone"),
        (diverged(3, [1.0, 2.0]), "diverged", "step 3 (the last ones before: 1, 2)"),
        (RunError("x", "Do y."), "x", "Do y."),
        (ZeroDivisionError("nobody\nknows"), "internal_error", "ZeroDivisionError: nobody"),
    ],
)
def test_an_error_is_explained(error: Exception, code: str, told: str):
    failed = explain(error, TrainSpec.model_validate(SPEC))

    assert failed.code == code
    assert told in failed.message and "\n" not in failed.message


@pytest.mark.slow
def test_a_run_without_enough_memory_says_how_much_there_is_and_what_to_lower(
    models_dir: Path, tmp_path: Path
):
    spec = {"training": {"micro_batch_size": 4096, "batch_size": 4096, "max_length": 256}}
    rows = [{"text": "long " * 50}] * 4096
    run = make_run(tmp_path / "run", models_dir / "tiny-llama", rows=rows, **spec)

    done = train_apart(run, limit_bytes=5 << 30)

    failed = events(run)[-1]
    assert done.returncode == 1 and isinstance(failed, Failed)
    assert failed.code == "out_of_memory", failed.message
    assert re.search(r"wanted \d+ bytes more: it takes [\d.]+ GiB of the", failed.message)
    assert "micro_batch_size (now 4096)" in failed.message
