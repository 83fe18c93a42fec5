"""Loads what the service trained, and lets base and adapters answer and be scored alike."""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 16
IGNORED = -100


@dataclass(frozen=True)
class Judged:
    """One model's mean loss on the held-out answers, in nats a token, and one answer."""

    title: str
    loss: float
    answer: str


def unpack(archive: bytes, folder: Path) -> Path:
    """Unpack an adapter; nothing may land outside the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def judge(title: str, base: str, adapter: Path, rows: Sequence[Any], *, tuned: bool) -> Judged:
    """Score a model on held-out rows and let it answer the first; the template is the adapter's."""
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = AutoModelForCausalLM.from_pretrained(base)
    if tuned:
        model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()
    return Judged(title, held_out_loss(model, tokenizer, rows), answer(model, tokenizer, rows[0]))


@torch.no_grad()
def held_out_loss(model: Any, tokenizer: Any, rows: Sequence[Any]) -> float:
    """Return the mean loss over the tokens of each row's last answer."""
    total = torch.zeros(())
    count = 0
    for row in rows:
        messages = row["messages"]
        asked = tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, tokenize=False
        )
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        prompt = tokenizer(asked, add_special_tokens=False)["input_ids"]
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"][
            : model.config.max_position_embeddings
        ]
        if len(ids) <= len(prompt):
            continue
        labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        learned = len(ids) - len(prompt)
        total += loss * learned
        count += learned
    return float(total / max(count, 1))


@torch.no_grad()
def answer(model: Any, tokenizer: Any, row: Any, *, tokens: int = 48) -> str:
    """Return the greedy answer to a row's question, on one line."""
    asked = tokenizer.apply_chat_template(
        row["messages"][:-1], add_generation_prompt=True, tokenize=False
    )
    inputs = tokenizer(asked, add_special_tokens=False, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    made = model.generate(
        **inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    text: str = tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(text.split())
