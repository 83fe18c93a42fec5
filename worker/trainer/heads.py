"""What a model ends in: its class, and the labels that it chooses from, if there are any."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from app.jobs.spec import Task

Batch = dict[str, torch.Tensor]
MODELS: dict[Task, Any] = {
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "classification": AutoModelForSequenceClassification,
}


Learning = Task | Literal["preference"]  # what rows, batches and the trainer follow


@dataclass(frozen=True)
class Head:
    """A task, and a classifier's labels in the order of its logits.

    `preferring` is a causal model that learns from pairs of answers, not from one.
    """

    task: Task = "causal"
    labels: tuple[str, ...] = ()
    preferring: bool = False

    @property
    def learning(self) -> Learning:
        return "preference" if self.preferring else self.task


CAUSAL = Head()
