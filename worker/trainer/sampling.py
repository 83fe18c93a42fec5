"""Samples what a policy does next in dialogues that grow, and reads each of their tokens once."""

# Legend: B dialogues that go on; N tokens that are new to the longest of them.

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Contexts = Mapping[int, Sequence[int]]  # by a dialogue's place: all its tokens so far


class Sampler:
    """Goes on with dialogues whose contexts only ever grow.

    Keys and values of what was read stay in the model's cache, those of dialogues that are over are
    dropped. New tokens stand at the right, after padding that no token attends to, whatever the
    dialogues' lengths; positions count the dialogue's own tokens. A window that slides counts the
    padding, too: a model with one reads its dialogues anew each time.
    """

    def __init__(
        self,
        model: Any,
        *,
        temperature: float,
        max_tokens: int,
        ends: Sequence[int],
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._model = model
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._autocast = autocast
        self._slides = _slides(model.config.get_text_config())
        self._ends = torch.tensor(ends, device=model.device)
        self._places: list[int] = []
        self._read: dict[int, int] = {}  # how many of a dialogue's tokens the cache holds
        self._cache: Any = None
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=model.device)

    @torch.no_grad()
    def __call__(self, contexts: Contexts) -> dict[int, list[int]]:
        """Return what is written next in each, the token that ends it included if one does."""
        was_training = self._model.training
        self._model.eval()  # in training, checkpointed layers keep no cache
        try:
            with self._autocast():
                return self._sampled(contexts)
        finally:
            self._model.train(was_training)

    def _sampled(self, contexts: Contexts) -> dict[int, list[int]]:
        self._keep(list(contexts))
        new = [torch.tensor(tokens[self._read[at] :]) for at, tokens in contexts.items()]
        written: list[list[int]] = [[] for _ in new]
        going = torch.ones(len(new), dtype=torch.bool, device=self._model.device)
        logits_BV = self._read_on(
            pad_sequence(new, batch_first=True, padding_side="left"),
            pad_sequence([torch.ones_like(each) for each in new], batch_first=True,
                         padding_side="left"),
        )  # fmt: skip
        for left in range(self._max_tokens - 1, -1, -1):
            chances_BV = torch.softmax(logits_BV.float() / self._temperature, dim=-1)
            tokens_B = torch.multinomial(chances_BV, num_samples=1).squeeze(1)
            for row, goes_on, token in zip(written, going.tolist(), tokens_B.tolist(), strict=True):
                if goes_on:
                    row.append(token)
            going &= ~torch.isin(tokens_B, self._ends)
            if not left or not going.any():
                break
            logits_BV = self._read_on(tokens_B[:, None], going[:, None].long())
        return dict(zip(contexts, written, strict=True))

    def _keep(self, places: list[int]) -> None:
        """Drop the dialogues that are over; the first call of a batch begins them all."""
        if self._cache is None or self._slides:
            self._cache = None
            self._places, self._read = places, dict.fromkeys(places, 0)
            self._mask = self._mask.new_zeros(len(places), 0)
        elif places != self._places:
            kept = [self._places.index(place) for place in places]
            rows = torch.tensor(kept, device=self._model.device)
            self._cache.batch_select_indices(rows)
            self._mask, self._places = self._mask[rows], places

    def _read_on(self, ids_BN: Tensor, mask_BN: Tensor) -> Tensor:
        """Read new tokens and return the logits after the last one, shape (B, V)."""
        ids_BN, mask_BN = ids_BN.to(self._model.device), mask_BN.to(self._model.device)
        before_B = self._mask.sum(dim=1, keepdim=True)
        self._mask = torch.cat([self._mask, mask_BN], dim=1)
        found = self._model(
            input_ids=ids_BN,
            attention_mask=self._mask,
            position_ids=(before_B + mask_BN.cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = found.past_key_values
        for place, count in zip(self._places, mask_BN.sum(dim=1).tolist(), strict=True):
            self._read[place] += count
        logits_BV: Tensor = found.logits[:, -1]
        return logits_BV


def _slides(config: Any) -> bool:
    """Return whether some layers see the last tokens alone."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return "sliding_attention" in kinds
    return bool(getattr(config, "sliding_window", None))
