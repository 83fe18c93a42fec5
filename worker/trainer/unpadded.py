"""Batches without padding: the rows stand one after another, and each attends to itself alone.

The loss and its gradients are those of the padded batch of the same rows, up to rounding: positions
start anew with each row, no token sees another row, and the mean is over the same answers. What is
saved are the padded positions, the half of the attention that a causal mask hides, and the logits
of all positions that carry no loss.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from itertools import accumulate
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl.kernels import ChunkedLogProbFunction

from worker.trainer.data import IGNORED

# Legend: T tokens of all rows of the batch, S of them scored, E hidden size, H heads, D their size.

ATTENTION = "each_row_alone"
# Each is compared with padded batches in the tests. Others keep those: their attention may hold
# more than this one knows of, such as chunks, sinks or a state that runs through the tokens.
FAMILIES = frozenset(
    {"gemma", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3", "starcoder2"}
)
VOCABULARY_TILE = 8192
KERNEL_TYPES = (torch.bfloat16, torch.float16)
KERNEL_HEAD = 256
# torch 2.11's kernel takes as many keys' heads as queries' alone: else rows go one by one there.
GROUPED: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
)


class Scores(NamedTuple):
    """What a model says of a batch's answers."""

    cost: Tensor  # the sum of −log p over the scored tokens
    right: Tensor  # how many of them were the most likely ones


def fits(model: Any) -> bool:
    """Return whether a model's batches can go without padding."""
    family: str = model.config.model_type
    return family in FAMILIES


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put rows of `input_ids` and `labels` one after another.

    Returns:
        input_ids, labels, position_ids (1, T); scored (S,), the positions whose next token carries
        loss; cu_seq_lens, where rows start and the last one ends; lengths of rows, for the host.
    """
    lengths = tuple(len(row["input_ids"]) for row in rows)
    ids = torch.cat([torch.as_tensor(row["input_ids"]) for row in rows])
    labels = torch.cat([torch.as_tensor(row["labels"]) for row in rows])
    starts = list(accumulate(lengths, initial=0))
    labels[starts[:-1]] = IGNORED  # nothing in its own row comes before it
    positions = torch.cat([torch.arange(length) for length in lengths])
    return {
        "input_ids": ids[None],
        "labels": labels[None],
        "position_ids": positions[None],
        "scored": (labels[1:] != IGNORED).nonzero().squeeze(1),
        "cu_seq_lens": torch.tensor(starts, dtype=torch.int32),
        "lengths": lengths,
    }


def score_answers(model: Any) -> None:
    """Let a causal model's forward take `scored`, and return `Scores` then.

    Only the scored positions go through the head; it is the model's own forward that is patched, so
    that what wraps the model (adapters, ranks) is gone through as ever.
    """
    original = model.forward

    @wraps(original)
    def forward(self: Any, *args: Any, scored: Tensor | None = None, **kwargs: Any) -> Any:
        if scored is None:
            return original(*args, **kwargs)
        labels = kwargs.pop("labels")
        states = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        head = self.get_output_embeddings()
        targets_S = labels[0].index_select(0, scored + 1)
        log_p_S, _, _, _, top_S = ChunkedLogProbFunction.apply(
            states[0].index_select(0, scored),
            head.weight,
            head.bias,
            targets_S,
            1.0,  # temperature
            VOCABULARY_TILE,
            None,  # soft cap
            1.0,  # scale of the logits
            ("log_probs", "is_top1"),
        )
        return Scores(-log_p_S.sum(), top_S.sum())

    model.forward = MethodType(forward, model)


@contextmanager
def each_row_alone(model: Any) -> Iterator[None]:
    """Let the model attend within rows: around forward and backward, which may compute it again."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    lengths: tuple[int, ...],
    cu_seq_lens: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend causally within each row; the tensors are (1, H, T, D), what returns (1, T, H, D)."""
    if not dropout and _takes(query, key):
        q_THD, k_THD, v_THD = (each[0].transpose(0, 1) for each in (query, key, value))
        longest = max(lengths)
        window = (sliding_window - 1 if sliding_window else -1, 0)
        found_THD: Tensor = varlen_attn(
            q_THD,
            k_THD,
            v_THD,
            cu_seq_lens,
            cu_seq_lens,
            longest,
            longest,
            scale=scaling,
            window_size=window,
            **GROUPED,
        )  # type: ignore[assignment]  # a pair only where more is asked for
        return found_THD[None], None
    parts = (torch.split(each, list(lengths), dim=2) for each in (query, key, value))
    found = [
        sdpa_attention_forward(
            module, q, k, v, _window(length, sliding_window, query.device),
            dropout=dropout, scaling=scaling, is_causal=True,
        )[0]
        for length, q, k, v in zip(lengths, *parts, strict=True)
    ]  # fmt: skip
    return torch.cat(found, dim=1), None


def _takes(query: Tensor, key: Tensor) -> bool:
    """Whether the kernel for rows of unlike length takes such tensors."""
    return (
        query.is_cuda
        and (bool(GROUPED) or query.shape[1] == key.shape[1])
        and query.dtype in KERNEL_TYPES
        and query.shape[-1] <= KERNEL_HEAD
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _window(length: int, size: int | None, device: torch.device) -> Tensor | None:
    """Return the causal mask of a row that is longer than the window; None where causal is all."""
    if size is None or length <= size:
        return None
    every = torch.ones(length, length, dtype=torch.bool, device=device)
    return every.tril().triu(1 - size)


AttentionInterface.register(ATTENTION, attention)
