"""What an evaluation counts besides the loss: accuracy, macro F1, MCC and exact match."""

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor
from torch.nn import functional

from worker.trainer.data import IGNORED

# Legend: B rows, T tokens of the target, V vocabulary, C classes, L label strings.


def classification_scores(true: Sequence[int], predicted: Sequence[int]) -> dict[str, float]:
    """Return accuracy, macro F1 and Matthews' correlation of two lists of classes."""
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "f1": float(f1_score(true, predicted, average="macro", zero_division=0.0)),
        "mcc": float(matthews_corrcoef(true, predicted)) if len({*true, *predicted}) > 1 else 0.0,
    }


def of_classes(evaluated: Any) -> dict[str, float]:
    """Score a classifier's predictions, as the Trainer hands them over."""
    best, cost_B = evaluated.predictions
    found = classification_scores(evaluated.label_ids.tolist(), best.tolist())
    return {"loss": float(cost_B.mean())} | found


def of_tokens(evaluated: Any) -> dict[str, float]:
    """Score the most likely tokens given the target so far.

    A row whose every token is right is what greedy decoding writes: it matches exactly.
    """
    best, cost_B = evaluated.predictions
    learned = evaluated.label_ids != IGNORED
    right = (best == evaluated.label_ids) & learned
    return {
        "loss": float(cost_B.sum() / learned.sum()),
        "mean_token_accuracy": float(right.sum() / learned.sum()),
        "exact_match": float((right == learned).all(axis=1).mean()),
    }


def best_and_cost(logits: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the best class of each prediction and the cross-entropy of each row, not all logits.

    The Trainer's own loss is a mean over batches: it counts the rows that fill up the last one, and
    is another for other micro-batches.
    """
    first: Tensor = logits[0] if isinstance(logits, tuple) else logits
    costs = functional.cross_entropy(
        first.float().reshape(-1, first.shape[-1]),
        labels.reshape(-1),
        ignore_index=IGNORED,
        reduction="none",
    )
    return first.argmax(dim=-1), costs.reshape(len(labels), -1).sum(dim=1)


def mean_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Cross-entropy over all targets of an optimizer step, however it is cut into micro-batches."""
    logits = outputs.logits.float()
    total = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        labels.reshape(-1),
        ignore_index=IGNORED,
        reduction="sum",
    )
    count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return total / count


@torch.no_grad()
def label_log_likelihoods(model: Any, batch: dict[str, Tensor], labels: Sequence[Tensor]) -> Tensor:
    """Return log p(label | row) summed over the label's tokens, shape (B, L)."""
    mask = batch["attention_mask"]
    encoded = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask)
    columns = []
    for label in labels:
        target_BT = label.to(mask.device).repeat(len(mask), 1)
        logits_BTV = model(
            encoder_outputs=encoded, attention_mask=mask, labels=target_BT
        ).logits.float()
        chosen_BT = logits_BTV.log_softmax(-1).gather(-1, target_BT.unsqueeze(-1)).squeeze(-1)
        columns.append(chosen_BT.sum(dim=1))
    return torch.stack(columns, dim=1)
