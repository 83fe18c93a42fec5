"""Small real things to test with."""

import json
from pathlib import Path
from typing import Any

from app.jobs.spec import RolloutSampled, Turn

PEPPER = "a pepper for tests only"


def chat_row(number: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"What is {number} plus {number}?"},
            {"role": "assistant", "content": f"{number} plus {number} is {2 * number}."},
        ]
    }


def preference_row(number: int) -> dict[str, Any]:
    """A question and two answers; the one that is preferred begins with a small letter."""
    return {
        "input": {"messages": [{"role": "user", "content": f"{number}?"}]},
        "preferred_output": [{"role": "assistant", "content": f"so {number}"}],
        "non_preferred_output": [{"role": "assistant", "content": f"NO {number}"}],
    }


def turn(number: int = 0, **values: Any) -> Turn:
    """A turn of GiGPO's, in a state that no other turn began in."""
    told: dict[str, Any] = {
        "observation": f"You stand at door {number}.",
        "action": f"open door {number}",
        "reward": 0.0,
        "valid": True,
        "episode_advantage": 0.5,
        "step_advantage": 0.0,
        "returned": 0.0,
        "state": f"state-{number}",
        "shared": 1,
    }
    return Turn(**told | values)


def rollout(step: int, index: int = 0, **values: Any) -> RolloutSampled:
    """What a run says of a rollout of one turn."""
    told: dict[str, Any] = {
        "at": 1_790_000_000.0 + step,
        "reward": float(index),
        "success": index > 0,
        "failure": None,
        "turns": (turn(),),
    }
    return RolloutSampled(step=step, index=index, **told | values)


def jsonl(rows: int) -> bytes:
    return to_jsonl([chat_row(number) for number in range(rows)])


def to_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def make_model_folder(folder: Path, *, layers: int = 2, context: int = 256) -> None:
    """Write a random LLaMA with a tokenizer of bytes, in Hugging Face's format."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fast = _byte_tokenizer(bos_token="<s>")
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def make_t5_folder(folder: Path) -> None:
    """Write a random T5 of two and two layers; its tokenizer of bytes ends a text with </s>."""
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import T5Config, T5ForConditionalGeneration

    fast = _byte_tokenizer()
    fast.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    config = T5Config(
        vocab_size=len(fast),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def make_bert_folder(folder: Path) -> None:
    """Write a random two-layer BERT, as it comes from masked pre-training: without a pooler."""
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertForMaskedLM

    fast = _byte_tokenizer(cls_token="<s>", sep_token="</s>")
    fast.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    fast.model_max_length = 64
    fast.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def _byte_tokenizer(**special_tokens: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate(special + letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", **special_tokens
    )
