"""Bases for a bench: a model folder with a chat template that every trainer reads alike."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

# What is learned of a row is its answer up to the end-of-text token, by whoever reads it: nothing
# follows that token. A turn begins in a line of its own: no token spans a prompt and its answer.
TEMPLATE = """\
{%- for message in messages -%}
{%- if not loop.first %}{{ '\n' }}{% endif -%}
{{- message['role'] + ':\n' + message['content'] -}}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '\nassistant:\n' }}{% endif -%}
"""
WORDS = 32_000
SHAPE_100M = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "vocab_size": WORDS,
}


def templated(model: Path, folder: Path) -> Path:
    """Copy a base, with the template in place of its own."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder)
    return _with_template(tokenizer, folder)


def random_llama(folder: Path, rows: Sequence[str], **changes: int) -> Path:
    """Make a LLaMA of 110 million random weights, and a tokenizer that has learned the rows.

    Args:
        rows: chat rows, one JSON object each.
        changes: of its shape.
    """
    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator(
        _contents(rows), vocab_size=WORDS, special_tokens=["<s>", "</s>", "<pad>"]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learned, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE_100M | changes, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    LlamaForCausalLM(config).save_pretrained(folder)
    return _with_template(tokenizer, folder)


def _contents(rows: Sequence[str]) -> Iterator[str]:
    for row in rows:
        for message in json.loads(row)["messages"]:
            yield message["content"]


def _with_template(tokenizer: Any, folder: Path) -> Path:
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder
