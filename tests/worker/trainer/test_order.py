"""The seed decides the order of the rows, and nothing else of a run does.

At a learning rate next to nothing the loss of a step tells which rows were in it.
"""

from pathlib import Path
from typing import Any

import pytest

from app.jobs.spec import StepDone
from tests.worker.trainer.runs import make_run, of_type, train_here

ROWS = [{"prompt": chr(97 + n), "completion": f" {chr(65 + n) * 9}"} for n in range(24)]
VALID = ROWS[:4]
STILL = {"type": "mgpo", "rho": 1e-9}
METHODS: dict[str, dict[str, Any]] = {
    "mgpo": {"perturbation": STILL},
    "noise": {"perturbation": {"type": "random", "rho": 1e-9}},
    "pissa": {"perturbation": STILL, "peft": {"method": "pissa"}},
    "lora_ga": {"perturbation": STILL, "peft": {"method": "lora_ga"}},
    "full": {"perturbation": {"type": "none"}, "peft": {"method": "full"}},
    "other settings": {
        "perturbation": STILL,
        "training": {"eval_steps": 2, "scheduler": "constant", "warmup_ratio": 0.0},
    },
}


def losses(models_dir: Path, path: Path, **changes: Any) -> list[float]:
    """The training loss of each step of two epochs."""
    own = changes.pop("training", {})
    still = {"learning_rate": 1e-12, "n_epochs": 2, "checkpoint_steps": 100}
    run = make_run(
        path,
        models_dir / "tiny-llama",
        rows=ROWS,
        valid=VALID,
        training=still | own,
        total_steps=12,
        **changes,
    )
    return [event.metrics["train_loss"] for event in of_type(train_here(run), StepDone)]


@pytest.fixture(scope="module")
def plain(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    path = tmp_path_factory.mktemp("order") / "plain"
    return losses(models_dir, path, perturbation={"type": "none"})


def test_the_rows_are_shuffled_anew_each_epoch(plain: list[float]):
    assert len(plain) == 12 and len({round(loss, 4) for loss in plain}) == 12


@pytest.mark.parametrize("method", METHODS)
def test_every_method_sees_the_same_rows_in_the_same_order(
    method: str, plain: list[float], models_dir: Path, tmp_path: Path
):
    found = losses(models_dir, tmp_path / "run", **METHODS[method])

    assert found == pytest.approx(plain, rel=1e-4)


def test_another_seed_is_another_order(plain: list[float], models_dir: Path, tmp_path: Path):
    found = losses(models_dir, tmp_path / "run", seed=8)

    assert found != pytest.approx(plain, rel=1e-3)
