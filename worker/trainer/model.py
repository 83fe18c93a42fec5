"""Loads the base and its tokenizer, and proves an adapter on a fresh base."""

from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from worker.rundir import Placement
from worker.trainer.data import PLAIN_TEMPLATE
from worker.trainer.faults import RunError

Precision = Literal["bf16", "fp32"]
TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "bf16": 2e-2}  # of the largest logit


def resolve_precision(asked: Literal["auto", "bf16", "fp32"]) -> Precision:
    """Return bf16 for "auto" on a GPU that has it, else fp32."""
    if asked != "auto":
        return asked
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def load_tokenizer(placement: Placement) -> Any:
    """Return the tokenizer, with a pad token and a chat template.

    Raises:
        RunError: it cannot be read, or gives no offsets.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(placement.location, **_origin(placement))
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(placement, error) from error
    if not tokenizer.is_fast:
        raise RunError("base_model_unreadable", "The base model's tokenizer is not a fast one.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def load_base(placement: Placement, precision: Precision) -> Any:
    """Return the base model on its device. Safetensors only; no code of the model's own.

    Raises:
        RunError: it cannot be read.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    try:
        model = AutoModelForCausalLM.from_pretrained(
            placement.location, dtype=dtype, use_safetensors=True, **_origin(placement)
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unreadable(placement, error) from error
    return model.to(_device())


@torch.no_grad()
def sample_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """Return the logits of one row in fp32 on the CPU, shape (T, V), from the clean weights."""
    model.eval()
    logits: torch.Tensor = model(input_ids=torch.tensor([ids], device=_device())).logits[0]
    return logits.float().cpu()


def prove(
    adapter: Path, placement: Placement, precision: Precision, *, ids: list[int], expected: Any
) -> float:
    """Load the artifact afresh, an adapter on the original base; return how far its logits are off.

    Raises:
        RunError: it is not the model that was trained.
    """
    if (adapter / "adapter_config.json").exists():
        fresh = PeftModel.from_pretrained(load_base(placement, precision), str(adapter))
    else:
        whole = Placement(source="folder", location=str(adapter), revision=None)
        fresh = load_base(whole, precision)
    found = sample_logits(fresh, ids)
    difference = float((found - expected).abs().max())
    scale = max(float(expected.abs().max()), 1.0)
    if not difference <= TOLERANCE[precision] * scale:
        raise RunError(
            "adapter_verification_failed",
            f"The saved adapter gives other logits than the trained model (by {difference:.3g}).",
        )
    return difference


def context_length(model: Any) -> int | None:
    """Return how many tokens the base can see, when it says."""
    found: int | None = getattr(model.config, "max_position_embeddings", None)
    return found


def _origin(placement: Placement) -> dict[str, Any]:
    return {
        "revision": placement.revision or "main",
        "local_files_only": placement.source == "folder",
        "trust_remote_code": False,
    }


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _unreadable(placement: Placement, error: Exception) -> RunError:
    first_line = (str(error).splitlines() or [""])[0]
    return RunError(
        "base_model_unreadable",
        "The base model cannot be read on the worker; check its files (config.json, *.safetensors,"
        f" tokenizer.json). {type(error).__name__}: {first_line}",
        param="model",
    )
