"""bf16, which "auto" is on a GPU: what trains in fp32 trains in it, with a proven adapter."""

import math
from pathlib import Path
from typing import Any

import pytest

from app.jobs.spec import EvalDone, Finished, StepDone
from tests.worker.trainer import test_agent, test_policy, test_preference
from tests.worker.trainer.runs import make_run, of_type, train_here
from tests.worker.trainer.test_methods import METHODS, VALID, peft
from worker.rundir import RunDir

BF16 = {"precision": "bf16"}
NOISE = {"rho": 0.05, "norm": None, "apn": None}
PERTURBATIONS: dict[str, dict[str, Any]] = {
    "none": {"type": "none", "rho": None, "beta": None, "norm": None, "apn": None},
    "random": {"type": "random", "beta": None} | NOISE,
    "ggpo": {"type": "ggpo", "beta": 0.01} | NOISE,
}
SHARPNESS = {"sharpness": {"rho": 0.05, "ascent_steps": 1, "directions": 2, "batches": 1}}


def proven(run: RunDir) -> RunDir:
    train_here(run)
    (finished,) = of_type(run, Finished)
    assert finished.metrics["verification_max_logit_difference"] < 2e-2
    assert all(math.isfinite(step.metrics["train_loss"]) for step in of_type(run, StepDone))
    return run


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(method: str, models_dir: Path, tmp_path: Path):
    training = BF16 | {"learning_rate": 1e-3 if method == "full" else 1e-2}
    model = models_dir / "tiny-llama"
    run = proven(
        make_run(
            tmp_path / "run", model, valid=VALID, peft=peft(method), training=training,
            evaluation=SHARPNESS,
        )
    )  # fmt: skip

    losses = [event.metrics["valid_loss"] for event in of_type(run, EvalDone)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_every_perturbation_trains(perturbation: str, models_dir: Path, tmp_path: Path):
    asked = PERTURBATIONS[perturbation]
    model = models_dir / "tiny-llama"
    proven(make_run(tmp_path / "run", model, training=BF16, perturbation=asked))


def test_layers_computed_again_train(models_dir: Path, tmp_path: Path):
    training = BF16 | {"gradient_checkpointing": True}
    proven(make_run(tmp_path / "run", models_dir / "tiny-llama", training=training))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_preferences_are_learned(method: str, models_dir: Path, tmp_path: Path):
    proven(test_preference.make(tmp_path / "run", models_dir, method, training=BF16))


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_a_policy_learns_by_a_grader(method: str, models_dir: Path, tmp_path: Path):
    run = test_policy.make(tmp_path / "run", models_dir, training=BF16, peft=peft(method))
    assert of_type(proven(run), Finished)[0].step == 6


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_a_policy_learns_in_an_environment(method: str, models_dir: Path, tmp_path: Path):
    run = test_agent.make(tmp_path / "run", models_dir, training=BF16, peft=peft(method))
    assert of_type(proven(run), Finished)[0].step == 6
