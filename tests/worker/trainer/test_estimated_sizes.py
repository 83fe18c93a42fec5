"""What an estimate says is trained is what PEFT makes trainable, method by method."""

from pathlib import Path

import pytest

from app.estimates import shapes
from app.models import catalog
from tests.app.test_estimates import spec
from worker.rundir import Placement
from worker.trainer import methods
from worker.trainer import model as models
from worker.trainer.tasks import KINDS, Head

ADAPTERS = ["lora", "dora", "adalora", "pissa", "lora_pro"]
CASES = [
    *(("tiny-llama", method) for method in [*ADAPTERS, "full"]),
    *(("tiny-t5", method) for method in ADAPTERS),
]
SOME = ("q", "q_proj", "wi", "down_proj")


@pytest.mark.parametrize(("name", "method"), CASES)
@pytest.mark.parametrize("targets", ["all-linear", SOME])
def test_the_numbers_that_are_trained_are_peft_s(
    models_dir: Path, name: str, method: str, targets: str | tuple[str, ...]
):
    base = catalog.of_folder(models_dir / name)
    asked = spec(**{"peft.method": method, "peft.target_modules": targets})
    asked = asked.model_copy(update={"task": base.task})
    shape = shapes.read(base)
    placement = Placement(source="folder", location=base.location, revision=None)
    model, _ = models.load_base(placement, "fp32", Head(base.task))
    whole = sum(parameter.numel() for parameter in model.parameters())

    attached = methods.attach(
        model,
        asked.peft,
        task_type=KINDS[base.task].peft,
        total_steps=10,
        seed=0,
        batches=list,
    )

    trained = [each.numel() for each in attached.model.parameters() if each.requires_grad]
    moved = [each.numel() for module in attached.modules().values() for each in module]
    assert shape is not None and shape.parameters == whole
    assert shapes.trainable(shape, asked) == sum(trained)
    assert shapes.perturbed(shape, asked) == sum(moved)
