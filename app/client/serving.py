"""Says how an exported folder is served: the exact lines for vLLM and for PEFT."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.jobs.spec import Task

CONFIG, LABELS = "adapter_config.json", "labels.json"
# What vLLM's --max-lora-rank takes; 16 unless it is said.
RANKS = (16, 32, 64, 128, 256, 320, 512)
HEADS = {"classifier", "score"}
AUTO: dict[Task, str] = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classification": "AutoModelForSequenceClassification",
}
MERGE = "`basin export JOB --merge` makes a whole model of it."


@dataclass(frozen=True)
class Lines:
    """How to serve a folder; where vLLM cannot, why not and what to do."""

    python: str
    vllm: str | None
    why_not: str | None


def of_adapter(folder: Path, *, base: str, name: str, task: Task) -> Lines:
    """Return the lines for an adapter on its base."""
    config = json.loads((folder / CONFIG).read_bytes())
    why_not = _why_not(config, task)
    vllm = None
    if why_not is None:
        rank = next(rank for rank in RANKS if rank >= config["r"])
        argv = ["vllm", "serve", base, "--enable-lora"]
        argv += ["--max-lora-rank", str(rank)] if rank > RANKS[0] else []
        vllm = shlex.join([*argv, "--lora-modules", f"{name}={folder}"])
    python = "\n".join(
        [
            "from peft import PeftModel",
            f"from transformers import {AUTO[task]}, AutoTokenizer",
            "",
            f"base = {AUTO[task]}.from_pretrained({_quoted(base)}{_classes(folder, task)})",
            f"model = PeftModel.from_pretrained(base, {_quoted(folder)})",
            f"tokenizer = AutoTokenizer.from_pretrained({_quoted(folder)})",
        ]
    )
    return Lines(python, vllm, why_not)


def of_model(folder: Path, *, name: str, task: Task) -> Lines:
    """Return the lines for a whole model: merged, or fine-tuned in full."""
    why_not = _not_offered(task)
    argv = ["vllm", "serve", str(folder), "--served-model-name", name]
    python = "\n".join(
        [
            f"from transformers import {AUTO[task]}, AutoTokenizer",
            "",
            f"model = {AUTO[task]}.from_pretrained({_quoted(folder)})",
            f"tokenizer = AutoTokenizer.from_pretrained({_quoted(folder)})",
        ]
    )
    return Lines(python, None if why_not else shlex.join(argv), why_not)


def _why_not(config: dict[str, Any], task: Task) -> str | None:
    """Return what vLLM refuses of an adapter: it reads plain LoRA alone."""
    if why_not := _not_offered(task):
        return why_not
    whole = set(config.get("modules_to_save") or ()) - HEADS
    if config["peft_type"] != "LORA":
        return f"vLLM serves no {config['peft_type']} adapters. {MERGE}"
    if config.get("use_dora"):
        return f"vLLM serves no DoRA adapters. {MERGE}"
    if whole:
        return f"vLLM serves no adapter that brings whole modules ({', '.join(whole)}). {MERGE}"
    if config["r"] > RANKS[-1]:
        return f"vLLM serves no adapter of a rank above {RANKS[-1]}. {MERGE}"
    return None


def _not_offered(task: Task) -> str | None:
    if task == "causal":
        return None
    kind = {"seq2seq": "encoder-decoders", "classification": "fine-tuned encoders"}[task]
    return f"vLLM is for language models; the lines for Python serve {kind}."


def _classes(folder: Path, task: Task) -> str:
    """Return what a classifier's head on a fresh base is told."""
    if task != "classification":
        return ""
    labels = json.loads((folder / LABELS).read_text(encoding="utf-8"))
    return f", num_labels={len(labels)}, id2label={dict(enumerate(labels))}"


def _quoted(text: object) -> str:
    return json.dumps(str(text), ensure_ascii=False)
