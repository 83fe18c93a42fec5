"""What a model ends in: its class, and the labels that it chooses from, if there are any."""

from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Head:
    """A task, and a classifier's labels in the order of its logits."""

    task: Task = "causal"
    labels: tuple[str, ...] = ()


CAUSAL = Head()
