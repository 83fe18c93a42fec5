"""Loads the base and its tokenizer, and proves an adapter on a fresh base."""

from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoTokenizer

from worker.rundir import Placement
from worker.trainer.chat import PLAIN_TEMPLATE
from worker.trainer.faults import RunError
from worker.trainer.heads import CAUSAL, MODELS, Batch, Head

Precision = Literal["bf16", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "stored": "auto"}
TARGETS = ("labels", "completion_mask")  # of a batch, what is no input of a model
STORED: Literal["stored"] = "stored"  # as precise as the files are
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


def load_base(
    placement: Placement, precision: Precision | Literal["stored"], head: Head = CAUSAL
) -> tuple[Any, tuple[str, ...]]:
    """Return the base model on its device, and the modules of its head that start at random.

    Safetensors only; no code of the model's own.

    Raises:
        RunError: it cannot be read, or lacks more weights than a new head's.
    """
    try:
        model, found = MODELS[head.task].from_pretrained(
            placement.location,
            dtype=DTYPES[precision],
            use_safetensors=True,
            output_loading_info=True,
            **_classes(head),
            **_origin(placement),
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unreadable(placement, error) from error
    unread = [*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])]
    missing = {name.rpartition(".")[0] for name in unread}
    if (head.task != "classification" and missing) or any(map(_is_numbered, missing)):
        lacking = ValueError(f"there are no weights for {', '.join(sorted(missing)[:5])}")
        raise _unreadable(placement, lacking)
    return model.to(_device()), tuple(sorted(missing))


def _is_numbered(module: str) -> bool:
    """Tell a layer of the body: those are counted, a head's are not."""
    return any(part.isdecimal() for part in module.split("."))


def _classes(head: Head) -> dict[str, Any]:
    if head.task != "classification":
        return {}
    names = dict(enumerate(head.labels))
    return {
        "num_labels": len(names),
        "id2label": names,
        "label2id": {name: place for place, name in names.items()},
        "ignore_mismatched_sizes": True,  # a head of its own, for other labels
    }


@torch.no_grad()
def sample_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Return the logits of a batch's first row in fp32 on the CPU, from the clean weights."""
    model.eval()
    there = {name: tensor.to(_device()) for name, tensor in batch.items() if name not in TARGETS}
    logits: torch.Tensor = model(**there).logits[0]
    return logits.float().cpu()


def prove(
    adapter: Path,
    placement: Placement,
    precision: Precision,
    *,
    head: Head = CAUSAL,
    batch: Batch,
    expected: Any,
) -> float:
    """Load the artifact afresh, an adapter on the original base; return how far its logits are off.

    Raises:
        RunError: it is not the model that was trained.
    """
    if (adapter / "adapter_config.json").exists():
        base, _ = load_base(placement, precision, head)
        fresh = PeftModel.from_pretrained(base, str(adapter))
    else:
        whole = Placement(source="folder", location=str(adapter), revision=None)
        fresh, _ = load_base(whole, precision, head)
    found = sample_logits(fresh, batch)
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
