"""Trains the demo's stand-in base, a LLaMA of about a million parameters, from scratch."""

import hashlib
import json
import math
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo import corpus

NAME = "basin-demo-1m"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"


@dataclass(frozen=True)
class Recipe:
    """All that decides what the base becomes, besides Python's own documentation."""

    vocabulary: int = 2048
    hidden: int = 128
    intermediate: int = 352
    layers: int = 4
    heads: int = 4
    context: int = 512
    sequence: int = 256
    batch: int = 8
    steps: int = 500
    limit_s: float = 120.0
    learning_rate: float = 4e-3
    warmup_steps: int = 20
    weight_decay: float = 0.1
    seed: int = 7


@dataclass(frozen=True)
class Step:
    """One optimizer step; `done` goes from 0 to 1, by steps or by the clock."""

    step: int
    loss: float
    tokens: int
    elapsed_s: float
    done: float


def folder_name(recipe: Recipe) -> str:
    """Name the folder for all that went into it, so that a second run finds it."""
    made_of = [asdict(recipe), corpus.VERSION, platform.python_version()]
    return f"{NAME}-{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:8]}"


def train_base(text: Sequence[str], folder: Path, recipe: Recipe) -> Iterator[Step]:
    """Train a tokenizer and a model on the text, step by step; the folder appears at the end."""
    torch.manual_seed(recipe.seed)
    tokenizer = train_tokenizer(text, recipe)
    model = LlamaForCausalLM(_config(recipe, tokenizer))
    sequences = _pack(text, tokenizer, recipe)
    yield from _optimize(model, sequences, recipe)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(folder)


def train_tokenizer(text: Sequence[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=recipe.context,
    )


def _config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _pack(text: Sequence[str], tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Tensor:
    """Return all texts one after the other, cut into sequences of one length."""
    # verbose: some texts are longer than the context, and are cut below.
    encoded = tokenizer(
        [f"{BOS}{part}{EOS}" for part in text], add_special_tokens=False, verbose=False
    )
    ids = torch.tensor([token for part in encoded["input_ids"] for token in part])
    return ids[: len(ids) // recipe.sequence * recipe.sequence].view(-1, recipe.sequence)


def _optimize(model: LlamaForCausalLM, sequences: Tensor, recipe: Recipe) -> Iterator[Step]:
    """Train with AdamW and a cosine that ends with the steps, or with the time if that is less."""
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )
    order = torch.Generator().manual_seed(recipe.seed)
    tokens, done, started = 0, 0.0, time.monotonic()
    model.train()
    for step in range(1, recipe.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, done, recipe)
        ids = sequences[torch.randint(len(sequences), (recipe.batch,), generator=order)]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += ids.numel()
        elapsed_s = time.monotonic() - started
        done = max(step / recipe.steps, min(1.0, elapsed_s / recipe.limit_s))
        yield Step(step, loss.item(), tokens, elapsed_s, done)
        if done >= 1:
            return


def _schedule(step: int, done: float, recipe: Recipe) -> float:
    """Return the share of the peak learning rate: a linear warm-up, then a cosine to a tenth."""
    warmup = min(1.0, step / recipe.warmup_steps)
    return warmup * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))
