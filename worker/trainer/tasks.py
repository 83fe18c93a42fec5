"""What differs between the tasks: model class, rows, batches, trainer and scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Seq2SeqTrainingArguments,
    TrainingArguments,
)
from trl import DPOConfig, GRPOConfig, SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from app.jobs.spec import TrainSpec
from worker.rundir import RunDir
from worker.trainer import labels, scores
from worker.trainer.data import Encoded, encode_file, encode_labelled, encode_pairs
from worker.trainer.heads import Batch, Head, Learning
from worker.trainer.methods import Loss, own_loss
from worker.trainer.pairs import PairCollator, encode_preferences, start_loss
from worker.trainer.prompts import PromptCollator, encode_episodes, encode_prompts

Collate = Callable[[list[dict[str, Any]]], Batch]


@dataclass(frozen=True)
class Kind:
    """A task in the words of PEFT and transformers' Trainer."""

    peft: str
    arguments: type[TrainingArguments]
    own_arguments: dict[str, Any]


SCORED = {"prediction_loss_only": False, "remove_unused_columns": False, "label_names": ["labels"]}
ROLLED_OUT = {"remove_unused_columns": False, "include_num_input_tokens_seen": "no"}  # TRL counts
KINDS: dict[Learning, Kind] = {
    "causal": Kind(
        "CAUSAL_LM",
        SFTConfig,
        {
            "prediction_loss_only": True,
            "dataset_kwargs": {"skip_prepare_dataset": True},
            "max_length": None,
        },
    ),
    "preference": Kind(
        "CAUSAL_LM",
        DPOConfig,
        {"prediction_loss_only": True, "remove_unused_columns": False, "max_length": None},
    ),
    "graded": Kind("CAUSAL_LM", GRPOConfig, ROLLED_OUT),
    "agent": Kind("CAUSAL_LM", GRPOConfig, ROLLED_OUT),
    "seq2seq": Kind("SEQ_2_SEQ_LM", Seq2SeqTrainingArguments, SCORED),
    "classification": Kind("SEQ_CLS", TrainingArguments, SCORED),
}


def head_of(spec: TrainSpec, run: RunDir) -> Head:
    """Return the head that a run's files ask for."""
    if spec.task == "classification":
        return Head(spec.task, labels.class_labels(run.train))
    if spec.task == "seq2seq":
        files = [path for path in (run.train, run.valid) if path.exists()]
        return Head(spec.task, labels.completion_labels(files))
    if spec.reinforcement is not None:
        acts = spec.reinforcement.environment is not None
        return Head(spec.task, otherwise="agent" if acts else "graded")
    return Head(spec.task, otherwise="preference" if spec.method == "dpo" else None)


def encode(head: Head, path: Path, tokenizer: Any, *, max_length: int, answer: int = 0) -> Encoded:
    """Read a file as the task needs it.

    Args:
        answer: how many tokens of the length are for what a policy writes.
    """
    if head.task == "classification":
        return encode_labelled(path, tokenizer, max_length=max_length, labels=head.labels)
    if head.task == "seq2seq":
        return encode_pairs(path, tokenizer, max_length=max_length)
    match head.otherwise:
        case "preference":
            return encode_preferences(path, tokenizer, max_length=max_length)
        case "graded":
            return encode_prompts(path, tokenizer, room=max_length - answer)
        case "agent":
            return encode_episodes(path)
    return encode_file(path, tokenizer, max_length=max_length)


def collator(head: Head, tokenizer: Any, model: Any) -> Collate:
    """Return what makes a batch of rows, each padded to the longest of the batch."""
    if head.task == "classification":
        return DataCollatorWithPadding(tokenizer)  # type: ignore[no-any-return]  # untyped
    if head.task == "seq2seq":
        return DataCollatorForSeq2Seq(tokenizer, model=model)  # type: ignore[no-any-return]  # untyped
    if head.otherwise == "preference":
        return PairCollator(tokenizer.pad_token_id)
    if head.otherwise is not None:
        return PromptCollator(tokenizer)
    return DataCollatorForLanguageModeling(tokenizer.pad_token_id)  # type: ignore[no-any-return]  # untyped


def first_loss(head: Head) -> Loss:
    """Return the loss whose gradient a run begins with."""
    return start_loss if head.otherwise == "preference" else own_loss


def trainer_options(head: Head, tokenizer: Any) -> dict[str, Any]:
    """Return how the task's trainer measures; TRL's knows by itself."""
    if head.task == "causal":
        return {}
    options: dict[str, Any] = {
        "compute_loss_func": scores.mean_loss,
        "preprocess_logits_for_metrics": scores.best_and_cost,
    }
    if head.task == "classification":
        return options | {"compute_metrics": scores.of_classes}
    return options | {
        "compute_metrics": scores.of_tokens,
        "label_tokens": _label_tokens(head.labels, tokenizer),
    }


def _label_tokens(strings: Sequence[str], tokenizer: Any) -> list[torch.Tensor]:
    return [torch.tensor(tokenizer(text_target=string)["input_ids"]) for string in strings]
