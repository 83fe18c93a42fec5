"""Each perturbation through the real trainer: what it changes, and what it must not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from app.errors import InvalidRequest
from app.jobs.defaults import _perturbation
from app.jobs.schemas import PerturbationIn
from app.jobs.spec import Finished, StepDone, Stopped
from tests.factories import chat_row
from tests.worker.trainer.runs import (
    adapter_bytes,
    events,
    make_run,
    of_type,
    stopping_at,
    train_here,
)
from worker.rundir import RunDir

VALID = [chat_row(number) for number in range(100, 104)]
TYPES: dict[str, dict[str, Any]] = {
    "mgpo": {"type": "mgpo"},
    "mgpo with its own momentum": {"type": "mgpo", "mu": 0.8, "norm": "global", "apn": "paper"},
    "mgpo with a schedule": {"type": "mgpo", "rho_schedule": "cosine", "start_step": 2},
    "random": {"type": "random"},
    "ggpo": {"type": "ggpo"},
    "none": {"type": "none"},
}
PERTURBING = [name for name in TYPES if name != "none"]


def resolved(asked: dict[str, Any]) -> dict[str, Any]:
    return _perturbation(PerturbationIn.model_validate(asked)).model_dump()


@pytest.fixture(scope="module")
def base(models_dir: Path) -> Path:
    return models_dir / "tiny-llama"


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    """One undisturbed run of each type."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: train_here(make_run(folder / name, base, perturbation=resolved(asked)))
        for name, asked in TYPES.items()
    }


@pytest.fixture
def forwards() -> Iterator[list[bool]]:
    """Every forward of the base from here on: whether it was one of training."""
    from transformers import LlamaForCausalLM

    seen: list[bool] = []

    def count(module: nn.Module, _: Any) -> None:
        if isinstance(module, LlamaForCausalLM):
            seen.append(module.training)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    yield seen
    hook.remove()


@pytest.mark.parametrize("name", PERTURBING)
def test_each_type_trains_another_adapter_that_loads_on_the_original_base(
    name: str, runs: dict[str, RunDir]
):
    assert adapter_bytes(runs[name]) != adapter_bytes(runs["none"])
    assert of_type(runs[name], Finished)[0].metrics["verification_max_logit_difference"] < 1e-4


@pytest.mark.parametrize("name", PERTURBING)
def test_each_type_reports_how_far_it_reaches(name: str, runs: dict[str, RunDir]):
    lengths = [e.metrics["perturbation_norm_max"] for e in of_type(runs[name], StepDone)]

    waits = {"mgpo with a schedule": 2, "ggpo": 0}.get(name, 1)
    assert all(length == 0 for length in lengths[:waits])
    assert all(length > 0 for length in lengths[waits:])


def test_a_schedule_shortens_the_steps(runs: dict[str, RunDir]):
    lengths = [
        event.metrics["perturbation_norm_max"] / event.metrics["perturbation_scale_mean"]
        for event in of_type(runs["mgpo with a schedule"], StepDone)[2:]
    ]

    assert lengths[-1] < lengths[0] / 2


@pytest.mark.parametrize("name", TYPES)
def test_stopped_and_resumed_ends_with_the_same_bits(
    name: str,
    runs: dict[str, RunDir],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    run = make_run(tmp_path / "run", base, perturbation=resolved(TYPES[name]))

    train_here(run, stopping_at(4, monkeypatch))
    stopped = events(run)[-1]
    train_here(run)

    assert isinstance(stopped, Stopped) and stopped.step == 4
    assert adapter_bytes(run) == adapter_bytes(runs[name])


@pytest.mark.parametrize("name", PERTURBING)
def test_evaluations_and_saves_are_clean(
    name: str, runs: dict[str, RunDir], base: Path, tmp_path: Path
):
    """Neither an evaluation nor a checkpoint at each step moves the result by a bit."""
    run = make_run(
        tmp_path / "run",
        base,
        valid=VALID,
        perturbation=resolved(TYPES[name]),
        training={"eval_steps": 1, "checkpoint_steps": 1},
    )
    train_here(run)

    saved = load_file(run.exports / "step-6" / "adapter_model.safetensors")
    final = load_file(run.adapter / "adapter_model.safetensors")
    assert adapter_bytes(run) == adapter_bytes(runs[name])
    assert all(torch.equal(saved[key], final[key]) for key in final)


@pytest.mark.parametrize("name", ["mgpo", "random", "ggpo"])
def test_gradient_checkpointing_changes_no_bit(
    name: str, runs: dict[str, RunDir], base: Path, tmp_path: Path
):
    recomputed = make_run(
        tmp_path / "run",
        base,
        perturbation=resolved(TYPES[name]),
        training={"gradient_checkpointing": True},
    )

    assert adapter_bytes(train_here(recomputed)) == adapter_bytes(runs[name])


@pytest.mark.parametrize("name", ["mgpo", "random", "ggpo", "none"])
def test_forwards_are_steps_times_accumulation(
    name: str, base: Path, tmp_path: Path, forwards: list[bool]
):
    run = make_run(
        tmp_path / "run",
        base,
        perturbation=resolved(TYPES[name]),
        training={"micro_batch_size": 2},
    )
    train_here(run)

    assert sum(forwards) == 6 * 2


@pytest.mark.parametrize("name", ["mgpo", "random"])
def test_length_zero_is_plain_lora_bit_for_bit(
    name: str, runs: dict[str, RunDir], base: Path, tmp_path: Path
):
    silent = resolved({"type": name, "rho": 0.0})
    run = train_here(make_run(tmp_path / "run", base, perturbation=silent))

    assert adapter_bytes(run) == adapter_bytes(runs["none"])


def test_noise_without_a_linear_layer_to_put_it_on_is_refused(base: Path, tmp_path: Path):
    from worker.trainer.faults import RunError

    noisy = make_run(
        tmp_path / "run",
        base,
        perturbation=resolved({"type": "random"}),
        peft={"target_modules": ["embed_tokens"]},
    )

    with pytest.raises(RunError, match="no linear layer to add noise to") as caught:
        train_here(noisy)
    assert caught.value.param == "perturbation.type"


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        ("mgpo", {"rho": 0.05, "beta": 0.9, "norm": "module", "apn": "relative"}),
        ("random", {"rho": 0.05, "beta": None, "norm": None, "apn": None}),
        ("ggpo", {"rho": 0.03, "beta": 0.01, "norm": None, "apn": None}),
        ("none", {"rho": None, "beta": None, "norm": None, "apn": None}),
    ],
)
def test_each_type_has_defaults_of_its_own(type_: str, expected: dict[str, Any]):
    found = resolved({"type": type_})

    assert expected.items() <= found.items()


@pytest.mark.parametrize("type_", ["mgpo", "random", "ggpo", "none"])
def test_what_a_job_shows_may_be_sent_again(type_: str):
    shown = resolved({"type": type_})

    if type_ == "none":
        del shown["start_step"]
    assert resolved(shown) == resolved({"type": type_})


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"type": "none", "rho": 0.1}, "rho"),
        ({"type": "random", "beta": 0.1}, "beta"),
        ({"type": "random", "apn": "off"}, "apn"),
        ({"type": "ggpo", "mu": 0.8}, "mu"),
        ({"type": "ggpo", "rho_schedule": "linear"}, "rho_schedule"),
        ({"type": "mgpo", "apn_cap": 2.0}, "apn_cap"),
    ],
    ids=str,
)
def test_a_field_that_says_nothing_to_the_type_is_refused(asked: dict[str, Any], param: str):
    with pytest.raises(InvalidRequest, match=param) as caught:
        resolved(asked)

    assert caught.value.param == f"perturbation.{param}"


def test_the_cap_belongs_to_the_papers_scale():
    assert resolved({"apn": "paper"})["apn_cap"] == 4
    assert resolved({"apn": "paper", "apn_cap": 2.0})["apn_cap"] == 2
