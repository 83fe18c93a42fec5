"""liger-kernel's kernels learn what a model's own operators learn; without a GPU none is used."""

import json
import subprocess
import sys

import pytest

from tests.worker.trainer.test_unpadded import tiny
from worker.trainer import kernels, unpadded

OWN = {"starcoder2"}  # whose layers are of other kinds than liger-kernel has


def forwards(model: object) -> dict[str, object]:
    return {name: module.forward for name, module in model.named_modules()}


def test_a_cpu_computes_with_torchs_operators():
    model = tiny("llama")
    before = forwards(model)

    assert kernels.use(model) is None
    assert forwards(model) == before


@pytest.mark.parametrize("family", sorted(unpadded.FAMILIES))
def test_a_step_with_the_kernels_is_the_step_without(family: str):
    pytest.importorskip("liger_kernel", reason="the extra `gpu` is not installed")
    command = [sys.executable, "-m", "tests.worker.trainer.interpreted", family]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert told.returncode == 0, told.stderr
    step = json.loads(told.stdout.splitlines()[-1])

    assert step["loss"] == pytest.approx(step["expected"], rel=1e-6)
    assert step["off"] < 2e-5
    if family not in OWN:
        assert {"model.norm", "model.layers.0.mlp"} <= {*step["changed"]}
