"""liger-kernel's kernels learn what a model's own operators learn; without a GPU none is used."""

import json
import subprocess
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig
from transformers.models.llama import modeling_llama

from app.jobs.spec import Finished, Warned
from tests.worker.trainer.runs import make_run, of_type, train_here
from tests.worker.trainer.test_unpadded import SHAPE, tiny
from worker.trainer import kernels, unpadded

OWN = {"starcoder2"}  # whose layers are of other kinds than liger-kernel has


def forwards(model: Any) -> dict[str, Any]:
    return {name: module.forward for name, module in model.named_modules()}


@cache
def step_of(family: str, **changes: Any) -> dict[str, Any]:
    pytest.importorskip("liger_kernel", reason="the extra `gpu` is not installed")
    command = [sys.executable, "-m", "tests.worker.trainer.interpreted", family]
    command.append(json.dumps(changes))
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert told.returncode == 0, told.stderr
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


def test_a_cpu_computes_with_torchs_operators():
    model = tiny("llama")
    before = forwards(model)

    with ExitStack() as computing:
        assert kernels.use(model, computing) is None
        assert kernels.in_use() == "none"
    assert forwards(model) == before


def test_kernels_that_fail_halfway_leave_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch):
    def halfway(model: Any, _options: Any) -> None:
        model.model.norm.forward = model.model.norm.eps = None
        modeling_llama.LlamaRMSNorm = None
        raise ImportError("another Triton")

    monkeypatch.setattr(kernels, "apply_liger_kernel", halfway)
    model, norm = tiny("llama"), modeling_llama.LlamaRMSNorm
    before = forwards(model)

    with pytest.raises(ImportError), ExitStack() as computing:
        kernels.replace(model, computing)

    assert forwards(model) == before and not hasattr(model.model.norm, "eps")
    assert modeling_llama.LlamaRMSNorm is norm


def test_a_run_whose_gpu_has_kernels_that_do_not_work_does_without_and_says_why(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(kernels, "use", lambda *_: "RuntimeError: there is no C compiler")
    run = train_here(make_run(tmp_path / "run", models_dir / "tiny-llama"))

    (warned,) = of_type(run, Warned)
    assert warned.code == "kernels_unavailable" and "no C compiler" in warned.message
    assert of_type(run, Finished)


@pytest.mark.parametrize("family", sorted(unpadded.FAMILIES - OWN))
def test_the_kernels_fit_the_families_as_they_come(family: str):
    assert kernels.fits(AutoConfig.for_model(family, **SHAPE))


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {"hidden_act": "gelu"}), ("gemma", {"hidden_act": "relu"}), ("gpt_oss", {})],
)
def test_they_do_not_fit_a_model_that_computes_otherwise(family: str, changes: dict[str, str]):
    assert not kernels.fits(AutoConfig.for_model(family, **SHAPE | changes))


@pytest.mark.parametrize("family", sorted(unpadded.FAMILIES))
def test_a_step_with_the_kernels_is_the_step_without(family: str):
    step = step_of(family)

    assert step["loss"] == pytest.approx(step["expected"], rel=1e-6)
    assert step["off"] < 2e-5
    if family not in OWN:
        assert {"model.norm", "model.layers.0.mlp"} <= {*step["replaced"]}
    assert step["left"] == []


def test_layers_with_a_bias_keep_it():
    step = step_of("llama", mlp_bias=True)

    assert step["loss"] == pytest.approx(step["expected"], rel=1e-6)
    assert step["off"] < 2e-5


def test_a_model_that_is_made_afterwards_computes_by_itself():
    step = step_of("llama", mlp_bias=True)

    assert step["afterwards"] == step["plain"]
