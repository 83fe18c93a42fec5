"""`python -m worker.trainer.export ADAPTER BASE TARGET`: an adapter merged into its base.

Says what it does as lines of JSON: {"stage", "done", "of"}, and last {"proof"}, {"refused"} or
{"failed"}.
"""

import argparse
import gc
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from app.jobs.spec import Task
from worker.rundir import Placement
from worker.trainer import model as models
from worker.trainer.faults import RunError
from worker.trainer.heads import Batch, Head
from worker.trainer.labels import LABELS

Kept = Literal["base", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# How far logits may be off, of the largest: by another order of sums, and by rounding the weights.
EXACT = 1e-5
ROUNDED = {"fp32": EXACT, "bf16": 2e-2, "fp16": 5e-3}
SEQUENCES, LENGTH, DECODED = 4, 32, 16
STAGES = (
    "loading the base and the adapter", "reading what they answer", "merging", "saving",
    "loading what was saved", "comparing",
)  # fmt: skip

CARD = """\
# {base} with {adapter}

A whole model: an adapter trained by Basin, merged into its base in fp32 and kept in {kept}.
{words}.
"""


class Refused(Exception):
    """The merged model is not the base under the adapter."""


@dataclass(frozen=True)
class Proof:
    """How far logits are off, as the largest difference on a few sequences.

    `merged` is that of the merged weights in fp32, `rounded` that of those kept, both from the base
    under the adapter; `reloaded` is what the way over the disk changed. `moved` is how far the
    adapter moves the base's logits, `scale` the largest logit.
    """

    kept: str
    moved: float
    scale: float
    merged: float
    rounded: float
    reloaded: float
    words: str


def export(
    adapter: Path,
    base: Path,
    target: Path,
    *,
    task: Task,
    kept: Kept = "base",
    tell: Callable[[str, int], None] = lambda _stage, _number: None,
) -> Proof:
    """Write the merged model to `target`, which appears whole and proven, or not at all.

    Args:
        adapter: what a job left: an adapter, or a whole model after a full fine-tune.
        base: folder of the base model in safetensors; none of its code is run.
        tell: hears each stage, and its number.

    Raises:
        Refused: the merged model answers otherwise than the base under the adapter.
        RunError: the base cannot be read.
    """
    stages = iter(enumerate(STAGES))

    def next_stage() -> None:
        number, name = next(stages)
        tell(name, number)

    dtype = _base_dtype(base) if kept == "base" else kept
    next_stage()
    model = _trained(adapter, base, task)
    batch = _sequences(model.config, task)
    next_stage()
    expected = _logits(model, batch)
    moved = _moved(model, batch, expected)
    next_stage()
    if isinstance(model, PeftModel):
        model = _merged(model)
    merged = _logits(model, batch)
    next_stage()
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    _round(model, dtype)
    model.save_pretrained(temporary)
    _round(model, "fp32")
    rounded = _logits(model, batch)
    del model
    gc.collect()
    next_stage()
    reloaded = _logits(_whole(temporary, _head(adapter, task)), batch)
    next_stage()
    try:
        proof = _prove(dtype, expected, moved, merged=merged, rounded=rounded, reloaded=reloaded)
    except Refused:
        shutil.rmtree(temporary)
        raise
    _complete(temporary, adapter, base, proof)
    temporary.rename(target)
    return proof


def _trained(adapter: Path, base: Path, task: Task) -> Any:
    """Return the base under the adapter, or the whole model that a job left, in fp32."""
    head = _head(adapter, task)
    if not (adapter / "adapter_config.json").exists():
        return _whole(adapter, head)
    loaded = _whole(base, head)
    return PeftModel.from_pretrained(loaded, str(adapter)).eval()


def _whole(folder: Path, head: Head) -> Any:
    placement = Placement(source="folder", location=str(folder), revision=None)
    loaded, _ = models.load_base(placement, "fp32", head)
    return loaded.eval()


def _head(adapter: Path, task: Task) -> Head:
    if task != "classification":
        return Head(task)
    labels = json.loads((adapter / LABELS).read_text(encoding="utf-8"))
    return Head(task, tuple(labels))


def _base_dtype(base: Path) -> str:
    """Return what the base says its weights are in; one that says nothing is in fp32."""
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    said = config.dtype or config.get_text_config().dtype
    return next((name for name, dtype in DTYPES.items() if dtype == said), "fp32")


def _sequences(config: Any, task: Task) -> Batch:
    """Draw the same tokens each time, from all that the model knows."""
    draw = torch.Generator().manual_seed(0)
    words = config.get_text_config().vocab_size
    length = min(LENGTH, getattr(config, "max_position_embeddings", None) or LENGTH)
    batch = {"input_ids": torch.randint(words, (SEQUENCES, length), generator=draw)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if task == "seq2seq":
        batch["decoder_input_ids"] = torch.randint(words, (SEQUENCES, DECODED), generator=draw)
    return batch


@torch.no_grad()
def _logits(model: Any, batch: Batch) -> Tensor:
    there = {name: tensor.to(model.device) for name, tensor in batch.items()}
    logits: Tensor = model(**there).logits
    return logits.float().cpu()


def _moved(model: Any, batch: Batch, expected: Tensor) -> float:
    if not isinstance(model, PeftModel):
        return 0.0
    with model.disable_adapter():
        return _difference(_logits(model, batch), expected)


def _merged(model: PeftModel) -> Any:
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise Refused(f"The adapter cannot be merged: {error}") from error


def _round(model: Any, dtype: str) -> None:
    """Put the weights into another type; what a model computes by itself stays as it is."""
    kept = model.state_dict().keys()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in kept and tensor.is_floating_point():
            tensor.data = tensor.data.to(DTYPES[dtype])


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


def _prove(
    dtype: str,
    expected: Tensor,
    moved: float,
    *,
    merged: Tensor,
    rounded: Tensor,
    reloaded: Tensor,
) -> Proof:
    """Compare what was merged, rounded and loaded again with what is expected."""
    scale = max(float(expected.abs().max()), 1.0)
    found = {
        "merged": (_difference(merged, expected), EXACT),
        "rounded": (_difference(rounded, expected), ROUNDED[dtype]),
        "reloaded": (_difference(reloaded, rounded), EXACT),
    }
    for stage, (difference, most) in found.items():
        if not difference <= most * scale:  # NaN is not either
            raise Refused(
                f"The {stage} model's logits differ by {difference:.3g} from what they should be;"
                f" at most {most:g} of the largest, {scale:.3g}, is allowed. It was not kept."
            )
    difference, most = found["rounded"]
    words = (
        f"Merged in fp32, kept in {dtype}: logits differ by {difference:.2g} from those of"
        f" base and adapter ({most:g} of the largest, {scale:.3g}, is allowed)"
    )
    numbers = {stage: difference for stage, (difference, _) in found.items()}
    return Proof(kept=dtype, moved=moved, scale=scale, words=words, **numbers)


def _complete(folder: Path, adapter: Path, base: Path, proof: Proof) -> None:
    """Add what a server needs besides weights: the tokenizer, its chat template, labels, a card."""
    AutoTokenizer.from_pretrained(adapter, local_files_only=True).save_pretrained(folder)
    if (adapter / LABELS).exists():
        shutil.copyfile(adapter / LABELS, folder / LABELS)
    card = CARD.format(base=base.name, adapter="an adapter", kept=proof.kept, words=proof.words)
    (folder / "README.md").write_text(card, encoding="utf-8")


def main() -> int:
    """Merge as the arguments say; what the libraries print goes to stderr."""
    parser = argparse.ArgumentParser(prog="worker.trainer.export")
    for name in ("adapter", "base", "target"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--task", choices=get_args(Task), required=True)
    parser.add_argument("--dtype", choices=get_args(Kept), default="base")
    given = parser.parse_args()
    lines, sys.stdout = sys.stdout, sys.stderr

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=lines, flush=True)

    def tell(stage: str, number: int) -> None:
        say({"stage": stage, "done": number, "of": len(STAGES)})

    try:
        proof = export(
            given.adapter, given.base, given.target, task=given.task, kept=given.dtype, tell=tell
        )
    except Refused as error:
        say({"refused": str(error)})
        return 1
    except RunError as error:
        say({"failed": error.message})
        return 1
    say({"proof": asdict(proof)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
