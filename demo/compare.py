"""Loads what the service trained with PEFT, and scores base and adapters alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.files.parse import Row
from demo.material import Base
from worker.trainer.data import IGNORED, encode_row, render_chat

ANSWER_TOKENS = 48

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Judged:
    """One model's mean loss on the held-out answers, in nats a token, and one answer."""

    label: str
    loss: float
    answer: str


def judge(
    base: Base,
    adapters: Mapping[str, Path],
    rows: Sequence[Row],
    *,
    max_length: int,
    progress: Progress,
) -> list[Judged]:
    """Score the base, then each adapter on it; the tokenizer and its template are the adapters'.

    Args:
        max_length: where rows are cut, in tokens, as in training.
        progress: is told a model's label and how many rows it has been scored on.
    """
    tokenizer = AutoTokenizer.from_pretrained(next(iter(adapters.values())))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        base.location,
        revision=base.revision or "main",
        dtype=torch.bfloat16 if device == "cuda" else torch.float32,
    ).to(device)
    encoded = [_cut(encode_row(row, tokenizer), max_length) for row in rows]
    asked = prompt(rows[0], tokenizer)

    def score(label: str, scored: Any) -> Judged:
        scored.eval()
        loss = held_out_loss(scored, encoded, lambda done: progress(label, done))
        return Judged(label, loss, answer(scored, tokenizer, asked))

    judged = [score("base", model)]
    for label, folder in adapters.items():
        adapted = PeftModel.from_pretrained(model, str(folder))
        judged.append(score(label, adapted))
        model = adapted.unload()
    return judged


@torch.no_grad()
def held_out_loss(
    model: Any, encoded: Sequence[tuple[list[int], list[int]]], progress: Callable[[int], None]
) -> float:
    """Return the mean loss over all tokens that the rows' answers have."""
    total, count = 0.0, 0
    for number, (ids, labels) in enumerate(encoded, 1):
        learned = sum(label != IGNORED for label in labels[1:])
        if learned:
            batch = torch.tensor([ids, labels], device=model.device)
            loss = model(input_ids=batch[:1], labels=batch[1:]).loss
            total += float(loss) * learned
            count += learned
        progress(number)
    return total / count if count else float("nan")


@torch.no_grad()
def answer(model: Any, tokenizer: Any, asked: str) -> str:
    """Return the greedy answer to a prompt, on one line."""
    ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
    context = getattr(model.config, "max_position_embeddings", None) or len(ids) + ANSWER_TOKENS
    kept = torch.tensor([ids[-(context - ANSWER_TOKENS) :]], device=model.device)
    made = model.generate(
        input_ids=kept,
        attention_mask=torch.ones_like(kept),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    text: str = tokenizer.decode(made[0, kept.shape[1] :], skip_special_tokens=True)
    return " ".join(text.split())


def prompt(row: Row, tokenizer: Any) -> str:
    """Return all that stands before a row's last answer, as the model is asked for it."""
    if "messages" not in row:
        return f"{tokenizer.bos_token or ''}{row['prompt']}"
    text, spans = render_chat(row, tokenizer)
    return text[: spans[-1][0]]


def question_and_answer(row: Row) -> tuple[str, str]:
    """Return what a row asks last and what it answers, for people to read."""
    if "messages" not in row:
        return row["prompt"].strip(), row["completion"].strip()
    asked = [message for message in row["messages"] if message["role"] != "assistant"]
    return _words(asked[-1] if asked else {}), _words(row["messages"][-1])


def _words(message: Row) -> str:
    """Return a message's text; of a tool call, its JSON."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or str(message.get("tool_calls") or "")


def _cut(encoded: tuple[list[int], list[int]], length: int) -> tuple[list[int], list[int]]:
    ids, labels = encoded
    return ids[:length], labels[:length]
