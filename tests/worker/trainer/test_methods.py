"""Every method's artifact works on the original base, and a run that goes on is the same run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from app.jobs.spec import EvalDone, Finished, StepDone
from tests.factories import chat_row
from tests.previews import chat_text, generated
from tests.worker.trainer.runs import adapter_bytes, events, make_run, of_type, train_here
from tests.worker.trainer.test_preview import answer, show
from worker.rundir import RunDir
from worker.trainer import methods, recipe
from worker.trainer.heads import CAUSAL
from worker.trainer.loaded import Cache
from worker.trainer.model import sample_logits

ADAPTERS = [
    "lora", "rslora", "dora", "adalora", "pissa", "lora_plus", "lora_ga", "lora_pro",
]  # fmt: skip
METHODS = [*ADAPTERS, "full"]
VALID = [chat_row(number) for number in range(100, 110)]


def peft(method: str) -> dict[str, Any]:
    return {"method": method, "lr_ratio": 16.0 if method == "lora_plus" else None}


@pytest.fixture(scope="module")
def model(models_dir: Path) -> Path:
    return models_dir / "tiny-llama"


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    folder = tmp_path_factory.mktemp("methods")
    return {
        method: train_here(
            make_run(
                folder / method,
                model,
                valid=VALID,
                peft=peft(method),
                training={"learning_rate": 1e-3 if method == "full" else 1e-2},
            )
        )
        for method in METHODS
    }


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_under_mgpo(finished: dict[str, RunDir], method: str):
    losses = [event.metrics["valid_loss"] for event in of_type(finished[method], EvalDone)]
    lengths = [
        event.metrics["perturbation_norm_max"] for event in of_type(finished[method], StepDone)
    ]

    assert losses[-1] < losses[0]
    assert min(lengths[1:]) > 0


@pytest.mark.parametrize("method", METHODS)
def test_the_artifact_is_the_trained_model_on_the_original_base(
    finished: dict[str, RunDir], method: str
):
    ended = of_type(finished[method], Finished)[-1]

    assert ended.metrics["verification_max_logit_difference"] <= 1e-5


@pytest.mark.parametrize("method", ADAPTERS)
def test_plain_peft_loads_the_artifact(
    finished: dict[str, RunDir], method: str, model: Path, tmp_path: Path
):
    base = AutoModelForCausalLM.from_pretrained(model)
    before = sample_logits(base, {"input_ids": torch.tensor([[1, 5, 9, 12]])})

    loaded = PeftModel.from_pretrained(base, str(finished[method].adapter))

    assert not torch.equal(
        sample_logits(loaded, {"input_ids": torch.tensor([[1, 5, 9, 12]])}), before
    )


def test_a_full_fine_tune_leaves_a_whole_model(finished: dict[str, RunDir], model: Path):
    loaded = AutoModelForCausalLM.from_pretrained(finished["full"].adapter)
    base = AutoModelForCausalLM.from_pretrained(model)

    assert not (finished["full"].adapter / "adapter_config.json").exists()
    assert not torch.equal(
        sample_logits(loaded, {"input_ids": torch.tensor([[1, 5, 9]])}),
        sample_logits(base, {"input_ids": torch.tensor([[1, 5, 9]])}),
    )


@pytest.mark.parametrize("method", ["pissa", "lora_ga"])
def test_a_method_that_changes_the_base_leaves_twice_the_rank(
    finished: dict[str, RunDir], method: str
):
    config = json.loads((finished[method].adapter / "adapter_config.json").read_bytes())

    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 16.0, True)


def test_adalora_ends_at_the_rank_that_was_asked_for(finished: dict[str, RunDir]):
    weights = load_file(finished["adalora"].adapter / "adapter_model.safetensors")
    ranks = [len(tensor) for name, tensor in weights.items() if "lora_E" in name]

    assert sum(ranks) == 4 * len(ranks)


def test_lora_plus_lets_b_learn_sixteen_times_faster(model: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", model, peft=peft("lora_plus"))
    base = AutoModelForCausalLM.from_pretrained(model)
    attached = methods.attach(
        base, run.read_spec().peft, task_type="CAUSAL_LM", total_steps=6, seed=7, batches=list
    )

    optimizer = attached.optimizer(torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.0})

    rates = {
        name.split(".lora_")[1][0]: group["lr"]
        for group in optimizer.param_groups
        for name, parameter in attached.model.named_parameters()
        if any(parameter is member for member in group["params"])
    }
    assert rates == {"A": 1e-3, "B": 1.6e-2}


@pytest.mark.parametrize("method", ["pissa", "lora_ga"])
def test_a_changed_start_changes_no_answer(model: Path, tmp_path: Path, method: str):
    run = make_run(tmp_path / "run", model, peft=peft(method))
    spec, placement = run.read_spec(), run.read_placement()
    base = AutoModelForCausalLM.from_pretrained(model)
    before = sample_logits(base, {"input_ids": torch.tensor([[1, 5, 9, 12]])})
    inputs = recipe._load(run, spec, placement, "fp32", head=CAUSAL, base=base, fresh=())

    attached = recipe._attach(run, inputs, base, None)

    assert torch.allclose(
        sample_logits(attached.model, {"input_ids": torch.tensor([[1, 5, 9, 12]])}),
        before,
        atol=1e-5,
    )
    assert all(bool(tensor.any()) for tensor in attached.initial.values())


def test_a_rank_that_the_weights_do_not_have_is_told(model: Path, tmp_path: Path):
    from worker.trainer.faults import RunError

    run = make_run(tmp_path / "run", model, peft=peft("lora_ga") | {"r": 17})

    with pytest.raises(RunError, match="directions"):
        train_here(run)


def test_training_goes_on_from_an_earlier_adapter(
    finished: dict[str, RunDir], model: Path, tmp_path: Path
):
    run = make_run(tmp_path / "run", model, valid=VALID, peft={"from": "ft:tiny-llama:org::1"})
    run.source.symlink_to(finished["lora"].adapter)
    earlier = of_type(finished["lora"], EvalDone)[-1].metrics["valid_loss"]

    train_here(run)

    first = of_type(run, EvalDone)[0].metrics["valid_loss"]
    assert math.isclose(first, earlier, rel_tol=1e-6)
    assert of_type(run, EvalDone)[-1].metrics["valid_loss"] < first
    assert isinstance(events(run)[-1], Finished)
    assert adapter_bytes(run) != adapter_bytes(finished["lora"])


@pytest.mark.parametrize("method", METHODS)
def test_a_preview_says_what_plain_peft_generates(
    finished: dict[str, RunDir], method: str, model: Path
):
    folder = finished[method].adapter
    base, adapter = (folder, None) if method == "full" else (model, folder)
    messages = ({"role": "user", "content": "What is 3 plus 3?"},)
    expected = generated(base, adapter, chat_text(folder, list(messages)), max_tokens=24)

    made = answer(Cache(1 << 30), show(model, folder, messages=messages, max_tokens=24))

    assert made.text == expected
