"""A run killed anywhere and started again ends with the bits of a run that was left alone."""

import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.jobs.spec import Finished, Started, Warned
from tests.factories import chat_row
from tests.worker.trainer.runs import events, make_run, of_type
from tests.worker.trainer.warm import POINTS, Warm, warm
from worker.rundir import RunDir

VALID = [chat_row(number) for number in range(100, 106)]
METHODS = [
    "lora", "rslora", "dora", "adalora", "pissa", "lora_plus", "lora_ga", "lora_pro", "full",
]  # fmt: skip
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def trainer() -> Iterator[Warm]:
    with warm() as running:
        yield running


@pytest.fixture(scope="module")
def model(models_dir: Path) -> Path:
    return models_dir / "tiny-llama"


def make(path: Path, model: Path, method: str = "lora", **changes: Any) -> RunDir:
    peft = {"method": method, "lr_ratio": 16.0 if method == "lora_plus" else None, "dropout": 0.1}
    return make_run(path, model, valid=VALID, **({"peft": peft} | changes))


def sha256(run: RunDir) -> str:
    assert isinstance(events(run)[-1], Finished), run.log.read_text()[-3000:]
    weights = run.adapter / "adapter_model.safetensors"
    if not weights.exists():
        weights = run.adapter / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_exactly(trainer: Warm, model: Path, tmp_path: Path, method: str):
    undisturbed = make(tmp_path / "undisturbed", model, method)
    killed = make(tmp_path / "killed", model, method)
    trainer.train(undisturbed.path)

    assert trainer.train(killed.path, kill_at="step_end", step=5) == KILLED
    trainer.train(killed.path)

    assert of_type(killed, Started)[-1].first_step == 4
    assert sha256(killed) == sha256(undisturbed)


@pytest.mark.parametrize(
    "perturbation",
    [
        {"type": "none"},
        {"type": "random", "rho": 0.05},
        {"type": "ggpo", "rho": 0.03, "beta": 0.01},
        {"rho_schedule": "cosine"},
        {"mu": 0.8},
        {"norm": "global", "apn": "off"},
        {"apn": "paper"},
        {"start_step": 4},
    ],
    ids=str,
)
def test_every_perturbation_resumes_exactly(
    trainer: Warm, model: Path, tmp_path: Path, perturbation: dict[str, Any]
):
    undisturbed = make(tmp_path / "undisturbed", model, perturbation=perturbation)
    killed = make(tmp_path / "killed", model, perturbation=perturbation)
    trainer.train(undisturbed.path)

    assert trainer.train(killed.path, kill_at="step_end", step=5) == KILLED
    trainer.train(killed.path)

    assert sha256(killed) == sha256(undisturbed)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("step", [1, 6])
def test_it_does_not_matter_where_it_was_killed(
    trainer: Warm, model: Path, tmp_path: Path, point: str, step: int
):
    changes = {"training": {"checkpoint_steps": 1}}
    undisturbed = make(tmp_path / "undisturbed", model, **changes)
    killed = make(tmp_path / "killed", model, **changes)
    trainer.train(undisturbed.path)

    code = trainer.train(killed.path, kill_at=point, step=step)
    trainer.train(killed.path)

    assert code == (0 if (point, step) == ("step_begin", 6) else KILLED)
    assert sha256(killed) == sha256(undisturbed)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training": {"max_steps": 4}, "total_steps": 4},
        {"budget": {"max_steps": 4}},
        {"training": {"eval_steps": 1, "early_stopping": {"patience": 1, "min_delta": 9.0}}},
    ],
    ids=["whole epochs", "within an epoch", "at its budget", "stopped early"],
)
def test_a_run_killed_after_its_last_step_trains_no_further(
    trainer: Warm, model: Path, tmp_path: Path, changes: dict[str, Any]
):
    undisturbed = make(tmp_path / "undisturbed", model, **changes)
    killed = make(tmp_path / "killed", model, **changes)
    trainer.train(undisturbed.path)

    assert trainer.train(killed.path, kill_at="delivering") == KILLED
    trainer.train(killed.path)

    last = of_type(undisturbed, Finished)[-1]
    assert of_type(killed, Finished)[-1].step == last.step == changes.get("total_steps", last.step)
    assert sha256(killed) == sha256(undisturbed)


def test_a_run_killed_again_and_again_resumes_exactly(trainer: Warm, model: Path, tmp_path: Path):
    changes = {"training": {"checkpoint_steps": 1}}
    undisturbed = make(tmp_path / "undisturbed", model, **changes)
    killed = make(tmp_path / "killed", model, **changes)
    trainer.train(undisturbed.path)

    codes = [trainer.train(killed.path, kill_at="step_end", step=step) for step in range(2, 7)]
    trainer.train(killed.path)

    assert codes == [KILLED] * 5
    assert sha256(killed) == sha256(undisturbed)


def test_early_stopping_resumes_exactly(trainer: Warm, model: Path, tmp_path: Path):
    changes = {
        "training": {
            "eval_steps": 1,
            "early_stopping": {"patience": 2, "min_delta": 0.02},
            "n_epochs": 3,
        }
    }
    undisturbed = make(tmp_path / "undisturbed", model, **changes)
    killed = make(tmp_path / "killed", model, **changes)
    trainer.train(undisturbed.path)

    assert trainer.train(killed.path, kill_at="step_end", step=4) == KILLED
    trainer.train(killed.path)

    assert sha256(killed) == sha256(undisturbed)
    assert of_type(killed, Finished)[-1].step == of_type(undisturbed, Finished)[-1].step


def test_other_versions_are_said_to_make_the_resume_inexact(
    trainer: Warm, model: Path, tmp_path: Path
):
    run = make(tmp_path / "run", model)
    trainer.train(run.path, kill_at="step_end", step=5)
    for kept in run.checkpoints.glob("*/made_with.json"):
        kept.write_text(kept.read_text().replace('"torch": "', '"torch": "0.'))

    trainer.train(run.path)

    (warned,) = [event for event in of_type(run, Warned) if event.code == "resume_not_exact"]
    assert "torch" in warned.message
    assert isinstance(events(run)[-1], Finished)


def test_the_same_versions_are_not_mentioned(trainer: Warm, model: Path, tmp_path: Path):
    run = make(tmp_path / "run", model)
    trainer.train(run.path, kill_at="step_end", step=5)

    trainer.train(run.path)

    assert not [event for event in of_type(run, Warned) if event.code == "resume_not_exact"]


def test_a_checkpoint_with_code_in_it_is_not_run(trainer: Warm, model: Path, tmp_path: Path):
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "evil",)

    run = make(tmp_path / "run", model)
    trainer.train(run.path, kill_at="step_end", step=5)
    (state,) = run.checkpoints.glob("*/optimizer.pt")
    state.write_bytes(pickle.dumps(Evil()))

    code = trainer.train(run.path)

    assert code == 1 and not (tmp_path / "evil").exists()
