"""An adapter of every method is merged into its base; what answers otherwise is not kept."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from tests.worker.trainer.runs import make_run, run_of, train_here
from worker.rundir import RunDir
from worker.trainer import export as exports
from worker.trainer.export import Refused, export

METHODS = [
    "lora", "rslora", "dora", "adalora", "pissa", "lora_plus", "lora_ga", "lora_pro", "full",
]  # fmt: skip
TASKS: dict[str, Any] = {
    "seq2seq": ("tiny-t5", AutoModelForSeq2SeqLM),
    "classification": ("tiny-bert", AutoModelForSequenceClassification),
}
WEIGHTS = "adapter_model.safetensors"


def peft(method: str) -> dict[str, Any]:
    return {"method": method, "lr_ratio": 16.0 if method == "lora_plus" else None}


@pytest.fixture(scope="module")
def base(models_dir: Path) -> Path:
    return models_dir / "tiny-llama"


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    folder = tmp_path_factory.mktemp("trained")
    steps = {"max_steps": 3, "learning_rate": 1e-2}
    return {
        method: train_here(make_run(folder / method, base, peft=peft(method), training=steps))
        for method in METHODS
    }


def logits(model: Any, **more: Any) -> torch.Tensor:
    tokens = torch.tensor([[1, 40, 5, 77, 12, 9]])
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=tokens, **more).logits
    return found


@pytest.mark.parametrize("method", METHODS)
def test_every_method_merges_into_a_model_that_answers_as_base_and_adapter_do(
    method: str, trained: dict[str, RunDir], base: Path, tmp_path: Path
):
    proof = export(trained[method].adapter, base, tmp_path / "merged", task="causal")

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    untrained = AutoModelForCausalLM.from_pretrained(base)
    assert proof.kept == "fp32" and proof.rounded <= 1e-5 * proof.scale
    assert proof.reloaded == 0 and (proof.moved > 1e-3 or method == "full")
    assert not torch.allclose(logits(merged), logits(untrained), atol=1e-4)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "merged"]


@pytest.mark.parametrize("task", TASKS)
def test_other_tasks_merge_too(task: str, models_dir: Path, tmp_path: Path):
    name, auto = TASKS[task]
    run = train_here(run_of(task, models_dir, tmp_path / "run", training={"learning_rate": 1e-2}))

    proof = export(run.adapter, models_dir / name, tmp_path / "merged", task=task)

    merged = auto.from_pretrained(tmp_path / "merged")
    more = {"decoder_input_ids": torch.tensor([[0, 9, 7]])} if task == "seq2seq" else {}
    assert proof.rounded <= 1e-5 * proof.scale and proof.moved > 1e-3
    assert torch.isfinite(logits(merged, **more)).all()
    if task == "classification":
        assert merged.config.id2label == {0: "0", 1: "1"}


def test_the_merged_model_brings_the_tokenizer_and_its_chat_template(
    trained: dict[str, RunDir], base: Path, tmp_path: Path
):
    export(trained["lora"].adapter, base, tmp_path / "merged", task="causal")

    found = AutoTokenizer.from_pretrained(tmp_path / "merged")
    theirs = AutoTokenizer.from_pretrained(trained["lora"].adapter)
    assert found.chat_template and found.chat_template == theirs.chat_template


@pytest.mark.parametrize(("kept", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_may_be_kept_rounded_and_are_as_on_disk(
    kept: Any, dtype: torch.dtype, trained: dict[str, RunDir], base: Path, tmp_path: Path
):
    proof = export(trained["lora"].adapter, base, tmp_path / "merged", task="causal", kept=kept)

    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    assert 0 < proof.rounded <= exports.ROUNDED[kept] * proof.scale
    assert proof.merged <= 1e-5 * proof.scale and proof.reloaded == 0


def test_a_base_in_bf16_stays_in_bf16(trained: dict[str, RunDir], base: Path, tmp_path: Path):
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(
        tmp_path / "base"
    )
    shutil.copyfile(base / "tokenizer.json", tmp_path / "base" / "tokenizer.json")

    proof = export(trained["lora"].adapter, tmp_path / "base", tmp_path / "merged", task="causal")

    assert proof.kept == "bf16"


def test_a_merge_that_loses_the_adapter_is_refused_and_leaves_nothing(
    trained: dict[str, RunDir], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from peft import PeftModel

    def forgetful(self: PeftModel, **_: Any) -> Any:
        return self.unload()

    monkeypatch.setattr(PeftModel, "merge_and_unload", forgetful, raising=False)

    with pytest.raises(Refused, match="merged model's logits differ"):
        export(trained["lora"].adapter, base, tmp_path / "merged", task="causal")

    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_refused(
    trained: dict[str, RunDir], base: Path, tmp_path: Path
):
    adapter = shutil.copytree(trained["lora"].adapter, tmp_path / "adapter")
    weights = load_file(adapter / WEIGHTS)
    first = next(iter(weights))
    weights[first][0, 0] = float("inf")
    save_file(weights, adapter / WEIGHTS, metadata={"format": "pt"})

    with pytest.raises(Refused, match="cannot be merged"):
        export(adapter, base, tmp_path / "merged", task="causal")

    assert not (tmp_path / "merged").exists()


def program(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    command = [sys.executable, "-m", "worker.trainer.export", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_program_says_its_stages_and_its_proof(
    trained: dict[str, RunDir], base: Path, tmp_path: Path
):
    code, lines = program(
        str(trained["dora"].adapter), str(base), str(tmp_path / "merged"), "--task", "causal"
    )

    assert code == 0 and [line["done"] for line in lines[:-1]] == list(range(len(exports.STAGES)))
    assert lines[-1]["proof"]["rounded"] <= 1e-5 * lines[-1]["proof"]["scale"]


def test_the_program_says_that_a_base_cannot_be_read(
    trained: dict[str, RunDir], models_dir: Path, tmp_path: Path
):
    code, lines = program(
        str(trained["lora"].adapter),
        str(models_dir / "broken-llama"),
        str(tmp_path / "merged"),
        *("--task", "causal"),
    )

    assert code == 1 and "base model cannot be read" in lines[-1]["failed"]
