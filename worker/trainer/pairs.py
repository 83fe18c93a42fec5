"""Preference rows as pairs of token ids: the conversation with either answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from worker.trainer.chat import Row
from worker.trainer.data import IGNORED, Encoded, bad_row, encode_row, none_left, numbered_rows

OUTPUTS = {"chosen": "preferred_output", "rejected": "non_preferred_output"}
REFERENCE = "reference"  # log-probabilities of both answers, once they are known


def encode_preferences(path: Path, tokenizer: Any, *, max_length: int) -> Encoded:
    """Read a file of preference rows, cutting each of a row's two conversations at `max_length`.

    A row of which an answer keeps no token is left out: there is nothing to prefer.

    Raises:
        RunError: no row is left, or the base model's template refuses one.
    """
    kept: list[Row] = []
    truncated = dropped = 0
    for line, row in numbered_rows(path):
        try:
            pair, cut = encode_pair(row, tokenizer, max_length=max_length)
        except TemplateError as error:
            raise bad_row(path, line, f"the base model's chat template says: {error}") from error
        truncated += cut
        if all(any(pair[f"{side}_mask"]) for side in OUTPUTS):
            kept.append(pair)
        else:
            dropped += 1
    if not kept:
        raise none_left(max_length)
    return Encoded(Dataset.from_list(kept), len(kept), truncated, dropped)


def encode_pair(row: Row, tokenizer: Any, *, max_length: int) -> tuple[Row, bool]:
    """Return a row's two conversations, with a mask of the answer's tokens; and if one was cut."""
    pair: Row = {}
    cut = False
    for side, output in OUTPUTS.items():
        asked = [message | {"weight": 0} for message in row["input"]["messages"]]
        whole = {"messages": asked + row[output], "tools": row["input"].get("tools")}
        ids, labels = encode_row(whole, tokenizer)
        cut = cut or len(ids) > max_length
        mask = [0, *(int(label != IGNORED) for label in labels[1:max_length])]
        pair |= {f"{side}_ids": ids[:max_length], f"{side}_mask": mask}
    return pair, cut


@dataclass(frozen=True)
class PairCollator:
    """Makes a batch of pairs: 2P rows, padded on the right to the longest of them."""

    pad_token_id: int

    def __call__(self, pairs: Sequence[Row]) -> dict[str, Tensor]:
        ids = [pair[f"{side}_ids"] for side in OUTPUTS for pair in pairs]
        masks = [pair[f"{side}_mask"] for side in OUTPUTS for pair in pairs]
        batch = {
            "input_ids": _padded(ids, self.pad_token_id),
            "attention_mask": _padded([[1] * len(row) for row in ids], 0),
            "completion_mask": _padded(masks, 0),
        }
        if REFERENCE in pairs[0]:
            sides = zip(*(pair[REFERENCE] for pair in pairs), strict=True)
            batch[REFERENCE] = torch.tensor([value for side in sides for value in side])
        return batch


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def start_loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return a loss with the direction of DPO's gradient at the start, where all rewards are 0."""
    mask = batch["completion_mask"]
    labels = batch["input_ids"].masked_fill(mask == 0, IGNORED)
    total = torch.zeros((), device=mask.device)
    for sign, half in zip((1, -1), range(2), strict=True):
        given = {name: batch[name].chunk(2)[half] for name in ("input_ids", "attention_mask")}
        found = model(**given, labels=labels.chunk(2)[half]).loss
        total = total + sign * found.float() * mask.chunk(2)[half].sum()
    return total
