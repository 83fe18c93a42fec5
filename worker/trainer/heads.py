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


# What a causal model learns from besides answers: pairs of them, a grader, an environment.
Otherwise = Literal["preference", "graded", "agent"]
Learning = Task | Otherwise  # what rows, batches and the trainer follow


@dataclass(frozen=True)
class Head:
    """A task, and a classifier's labels in the order of its logits."""

    task: Task = "causal"
    labels: tuple[str, ...] = ()
    otherwise: Otherwise | None = None

    @property
    def learning(self) -> Learning:
        return self.otherwise or self.task


CAUSAL = Head()
