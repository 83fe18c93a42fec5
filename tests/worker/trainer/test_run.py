"""A run: from its folder to the proven adapter; clean at rest, the same bits after a stop."""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.jobs.spec import (
    CheckpointSaved,
    EvalDone,
    Failed,
    Finished,
    Started,
    StepDone,
    Stopped,
    Warned,
)
from tests.factories import chat_row
from tests.worker.trainer.runs import (
    adapter_bytes,
    events,
    make_run,
    of_type,
    stopping_at,
    train_apart,
    train_here,
)
from worker.rundir import RunDir
from worker.trainer import recipe

VALID = [chat_row(number) for number in range(100, 108)]
PLAIN = {"type": "none"}


@pytest.fixture(scope="module")
def base(models_dir: Path) -> Path:
    return models_dir / "tiny-llama"


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """One undisturbed run in a process of its own."""
    run = make_run(tmp_path_factory.mktemp("runs") / "run", base, valid=VALID)
    result = train_apart(run)
    assert result.returncode == 0, result.stderr
    return run


def test_a_run_tells_its_story_in_order(finished: RunDir):
    said = [type(event) for event in events(finished)]

    assert said[0] is Started and said[-1] is Finished
    assert [event.step for event in of_type(finished, StepDone)] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in of_type(finished, EvalDone)] == [0, 3, 6]  # 0: the base
    assert [event.step for event in of_type(finished, CheckpointSaved)] == [3, 6]


def test_every_step_reports_what_people_look_at(finished: RunDir):
    metrics = of_type(finished, StepDone)[-1].metrics

    assert set(metrics) == {
        "train_loss",
        "train_mean_token_accuracy",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "memory_bytes",
        "perturbation_norm_max",
        "perturbation_scale_mean",
        "perturbation_clamped_share",
    }
    assert all(math.isfinite(value) for value in metrics.values())
    assert set(of_type(finished, EvalDone)[-1].metrics) == {
        "valid_loss",
        "valid_mean_token_accuracy",
    }


def test_the_first_gradient_is_taken_unperturbed_and_the_next_ones_are_not(finished: RunDir):
    lengths = [event.metrics["perturbation_norm_max"] for event in of_type(finished, StepDone)]

    assert lengths[0] == 0 and min(lengths[1:]) > 0


def test_the_archive_holds_all_that_is_needed_and_a_card(finished: RunDir):
    card = (finished.adapter / "README.md").read_text()

    assert {path.name for path in finished.adapter.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert "LoRA-MGPO" in card and "0" * 64 in card
    assert '"rho": 0.05' in card and '"valid_loss"' in card
    assert card.startswith("---\nbase_model:")


def test_the_adapter_loads_on_the_original_base_and_changes_what_it_says(
    finished: RunDir, base: Path
):
    tokenizer = AutoTokenizer.from_pretrained(finished.adapter)
    plain = AutoModelForCausalLM.from_pretrained(base)
    ids = tokenizer("What is 3 plus 3?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = plain(input_ids=ids).logits
        after = PeftModel.from_pretrained(plain, str(finished.adapter))(input_ids=ids).logits

    assert tokenizer.chat_template
    assert not torch.allclose(before, after)


def test_the_same_seed_gives_the_same_adapter_in_another_process(
    finished: RunDir, base: Path, tmp_path: Path
):
    again = train_here(make_run(tmp_path / "run", base, valid=VALID))

    assert adapter_bytes(again) == adapter_bytes(finished)


def test_rho_zero_is_bit_for_bit_plain_lora(base: Path, tmp_path: Path):
    plain = train_here(make_run(tmp_path / "plain", base, perturbation=PLAIN))
    zero = train_here(make_run(tmp_path / "zero", base, perturbation={"rho": 0.0}))

    assert adapter_bytes(plain) == adapter_bytes(zero)


def test_mgpo_trains_another_adapter_than_plain_lora(finished: RunDir, base: Path, tmp_path: Path):
    plain = train_here(make_run(tmp_path / "plain", base, valid=VALID, perturbation=PLAIN))

    assert adapter_bytes(plain) != adapter_bytes(finished)


def test_an_evaluation_does_not_disturb_the_training(finished: RunDir, base: Path, tmp_path: Path):
    unseen = train_here(make_run(tmp_path / "run", base))

    assert adapter_bytes(unseen) == adapter_bytes(finished)


def test_saved_weights_are_clean(finished: RunDir):
    """The last checkpoint's weights are the adapter's: no perturbation was saved with them."""
    saved = load_file(finished.checkpoints / "checkpoint-6" / "trainable.safetensors")
    final = load_file(finished.adapter / "adapter_model.safetensors")

    assert {name.replace(".default", "") for name in saved} == final.keys()
    assert all(torch.equal(saved[name], final[name.replace(".default", "")]) for name in saved)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_stopped_and_resumed_ends_with_the_same_bits(
    step: int, finished: RunDir, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(tmp_path / "run", base, valid=VALID)

    train_here(run, stopping_at(step, monkeypatch))
    stopped = events(run)[-1]
    train_here(run)

    assert stopped == Stopped(at=stopped.at, step=step)
    assert of_type(run, Started)[-1].first_step == step + 1
    assert adapter_bytes(run) == adapter_bytes(finished)


def test_a_checkpoint_that_was_cut_short_is_not_resumed_from(
    finished: RunDir, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(tmp_path / "run", base, valid=VALID)
    train_here(run, stopping_at(4, monkeypatch))
    (run.checkpoints / "checkpoint-4" / "complete").unlink()

    train_here(run)

    assert of_type(run, Started)[-1].first_step == 4
    assert adapter_bytes(run) == adapter_bytes(finished)


def test_a_run_that_dies_before_it_exports_a_checkpoint_does_not_resume_from_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else the adapter of that step would be missing from what the job leaves."""
    run = make_run(tmp_path / "run", base, valid=VALID)
    with monkeypatch.context() as dying:
        dying.setattr(recipe, "export", dies)
        with pytest.raises(KeyboardInterrupt):
            train_here(run)

    train_here(run)

    assert [event.first_step for event in of_type(run, Started)] == [1, 1]
    assert [event.step for event in of_type(run, CheckpointSaved)] == [3, 6]


def test_a_run_that_was_stopped_resumes_from_there_though_it_had_no_time_to_export(
    base: Path, finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(tmp_path / "run", base, valid=VALID)
    with monkeypatch.context() as dying:
        dying.setattr(recipe, "export", dies)
        with pytest.raises(KeyboardInterrupt):
            train_here(run, stopping_at(2, monkeypatch))

    train_here(run)

    assert [event.first_step for event in of_type(run, Started)] == [1, 3]
    assert adapter_bytes(run) == adapter_bytes(finished)


def dies(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_accumulated_micro_batches_are_one_batch(base: Path, tmp_path: Path):
    whole = train_here(make_run(tmp_path / "whole", base))
    pieces = train_here(make_run(tmp_path / "pieces", base, training={"micro_batch_size": 1}))

    first = load_file(whole.adapter / "adapter_model.safetensors")
    second = load_file(pieces.adapter / "adapter_model.safetensors")
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-4, rtol=0)


@pytest.mark.parametrize("rows", ["chat", "prompt_completion"])
def test_the_loss_falls(rows: str, base: Path, tmp_path: Path):
    data = [chat_row(n) for n in range(24)]
    if rows == "prompt_completion":
        data = [{"prompt": f"{n} is", "completion": f" {n}."} for n in range(24)]
    run = train_here(make_run(tmp_path / "run", base, rows=data, training={"n_epochs": 4}))

    losses = [event.metrics["train_loss"] for event in of_type(run, StepDone)]
    assert losses[-1] < losses[0] * 0.96  # a random base of bytes learns slowly


def test_max_steps_ends_a_run_in_the_middle_of_an_epoch(base: Path, tmp_path: Path):
    run = train_here(make_run(tmp_path / "run", base, training={"max_steps": 2}))

    assert of_type(run, Started)[0].total_steps == 2
    assert of_type(run, Finished)[0].step == 2


def test_rows_of_both_files_are_counted_in_a_warning(base: Path, tmp_path: Path):
    rows = [chat_row(n) for n in range(24)]
    held_out = [chat_row(n) for n in (3, 5, 99)]
    run = make_run(tmp_path / "run", base, rows=rows, valid=held_out, training={"max_steps": 1})

    train_here(run)

    (warned,) = of_type(run, Warned)
    assert warned.code == "validation_overlap"
    assert warned.message.startswith("The training file, 2 times: ")


def test_cut_rows_are_counted_in_a_warning(base: Path, tmp_path: Path):
    rows = [*[chat_row(n) for n in range(23)], {"prompt": "p", "completion": "c" * 400}]
    run = train_here(make_run(tmp_path / "run", base, rows=rows, training={"max_steps": 1}))

    assert [event.code for event in of_type(run, Warned)] == ["rows_truncated"]
    assert of_type(run, Warned)[0].message.startswith("1 training rows are longer than 128")


def test_a_run_that_diverges_says_where_and_which_knob(base: Path, tmp_path: Path):
    poisoned = tmp_path / "poisoned"
    shutil.copytree(base, poisoned)
    from safetensors.torch import save_file

    weights = load_file(poisoned / "model.safetensors")
    weights["model.norm.weight"][0] = math.inf
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    run = make_run(tmp_path / "run", poisoned)

    result = train_apart(run)

    failed = events(run)[-1]
    assert result.returncode == 1
    assert isinstance(failed, Failed) and failed.code == "diverged"
    assert "step 1" in failed.message and "training.learning_rate" in failed.message


@pytest.mark.parametrize("damage", ["no weights", "half a file", "no tokenizer", "no config"])
def test_a_base_that_cannot_be_read_is_named_as_such(damage: str, base: Path, tmp_path: Path):
    from worker.trainer.faults import RunError

    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    weights = broken / "model.safetensors"
    if damage == "no weights":
        weights.unlink()
    elif damage == "half a file":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "no tokenizer":
        (broken / "tokenizer.json").unlink()
    else:
        (broken / "config.json").write_text("{}")

    with pytest.raises(RunError) as caught:
        train_here(make_run(tmp_path / "run", broken))

    assert caught.value.code == "base_model_unreadable"
    assert "config.json" in caught.value.message


def test_a_target_module_that_is_not_there_is_named(base: Path, tmp_path: Path):
    from worker.trainer.faults import RunError

    run = make_run(tmp_path / "run", base, peft={"target_modules": ["no_such_layer"]})

    with pytest.raises(RunError, match="no_such_layer") as caught:
        train_here(run)

    assert caught.value.param == "peft.target_modules"


def test_a_hub_pickle_is_never_loaded(base: Path, tmp_path: Path):
    """Weights in pickle form can run code when loaded: only safetensors are read."""
    from worker.trainer.faults import RunError

    pickled = tmp_path / "pickled"
    shutil.copytree(base, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()

    with pytest.raises(RunError) as caught:
        train_here(make_run(tmp_path / "run", pickled))

    assert caught.value.code == "base_model_unreadable"


def test_adapter_config_names_the_base_as_the_user_knows_it(finished: RunDir):
    config = json.loads((finished.adapter / "adapter_config.json").read_bytes())

    assert config["base_model_name_or_path"] == "tiny-llama"
    assert config["inference_mode"] is True


def test_sharpness_is_measured_at_every_evaluation_and_changes_nothing(
    finished: RunDir, base: Path, tmp_path: Path
):
    asked = {"rho": 0.05, "ascent_steps": 2, "directions": 3, "batches": 2}
    run = make_run(tmp_path / "run", base, valid=VALID, evaluation={"sharpness": asked})

    train_here(run)

    measured = [event.metrics for event in of_type(run, EvalDone)]
    assert all(each["valid_sharpness_worst"] > each["valid_sharpness_mean"] for each in measured)
    assert all(math.isfinite(each["valid_sharpness_worst"]) for each in measured)
    assert adapter_bytes(run) == adapter_bytes(finished)


def test_a_run_that_gets_no_better_is_stopped_with_its_best_adapter(base: Path, tmp_path: Path):
    """The validation rows contradict the training rows: the better it learns, the worse it is."""
    liars = [{"prompt": "2 + 2 =", "completion": f" {number}"} for number in range(30, 40)]
    rows = [{"prompt": "2 + 2 =", "completion": " four"}] * 24
    run = make_run(
        tmp_path / "run",
        base,
        rows=rows,
        valid=liars,
        training={
            "n_epochs": 20,
            "eval_steps": 1,
            "learning_rate": 5e-2,
            "early_stopping": {"patience": 3, "min_delta": 0.0},
        },
    )

    train_here(run)

    losses = {event.step: event.metrics["valid_loss"] for event in of_type(run, EvalDone)}
    (told,) = [event for event in of_type(run, Warned) if event.code == "best_evaluation"]
    ended = of_type(run, Finished)[-1]
    best = min((step for step in losses if step), key=lambda step: losses[step])
    assert ended.step == best + 3 < 120
    assert f"step {best}" in told.message and "stopped early" in told.message
    assert ended.metrics["best_step"] == best
    kept = load_file(run.path / "best" / "trainable.safetensors")
    final = load_file(run.adapter / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], final[name.replace(".default", "")]) for name in kept)


def test_a_budget_of_steps_ends_the_run_well_and_says_so(models_dir: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", models_dir / "tiny-llama", budget={"max_steps": 2})

    train_here(run)

    (warned,) = [event for event in of_type(run, Warned) if event.code == "budget_spent"]
    assert "The budget of steps is spent at step 2 of 6" in warned.message
    assert of_type(run, Finished)[-1].step == 2 and adapter_bytes(run)
    rates = [event.metrics["learning_rate"] for event in of_type(run, StepDone)]
    assert rates[-1] > 0, "the schedule is that of the whole run"


def test_a_budget_of_time_ends_the_run_after_the_step_it_is_spent_in(
    models_dir: Path, tmp_path: Path
):
    run = make_run(tmp_path / "run", models_dir / "tiny-llama")
    spent = run.read_placement().model_copy(update={"ends_at": time.monotonic()})
    run.placement.write_text(spent.model_dump_json())

    train_here(run)

    (warned,) = [event for event in of_type(run, Warned) if event.code == "budget_spent"]
    assert "The budget of time is spent at step 1 of 6" in warned.message
    assert of_type(run, Finished)[-1].step == 1 and adapter_bytes(run)
