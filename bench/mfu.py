"""How much of a chip a training step uses: model FLOPs against what its matrix products reach.

`python -m bench.mfu` takes the trainer's own step (batches without padding, the head on what
carries loss, MGPO, AdamW) on a random LLaMA of the 7B shape, in bf16, with LoRA of rank 16 and rows
of 2048 tokens, without gradient checkpointing. A step's model FLOPs are 4 for each weight that a
token is multiplied with: 2 forward, and 2 for the gradient of what went in; a frozen weight has
none of its own. Attention, the factors and the perturbation take time and count for nothing.

The chip's rate is measured beside each step, on products of two square bf16 matrices that take as
long as the step: a chip that is busy for longer is slower than in its first millisecond. On a CPU a
small model in fp32 shows that the bench runs; the target is a GPU's.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Any

import torch
import typer
from accelerate.utils import send_to_device
from rich.console import Console

from bench.overhead import SPECS, adapted, load, timed
from bench.result import JsonFile, Target, compared, report
from worker.trainer import unpadded
from worker.trainer.perturbations import build

TARGET = Target(sign="≥", bound=0.55, of="ratio")
SIDE = {"cuda": 8192, "cpu": 1024}  # of the matrices that tell the chip's rate
ROW = {"cuda": 2048, "cpu": 128}


def main(
    rows: Annotated[int, typer.Option(help="Rows of a step.")] = 4,
    sequence: Annotated[int | None, typer.Option(help="Tokens of a row.")] = None,
    rank: Annotated[int, typer.Option(help="LoRA's r.")] = 16,
    rounds: Annotated[int, typer.Option(help="Timed steps.")] = 10,
    perturbation: Annotated[str, typer.Option(help="mgpo, random, ggpo or none.")] = "mgpo",
    json_file: JsonFile = None,
) -> None:
    """Time steps and matrix products in turn, and print the share of the chip's rate."""
    where = "cuda" if torch.cuda.is_available() else "cpu"
    if where == "cpu":
        Console().print("There is no CUDA device: a small model shows that the bench runs.")
    length = sequence or ROW[where]
    base = load(None, where, checkpointing=False)
    flops = model_flops(base, tokens=rows * length)
    model = adapted(base, rank=rank)
    batch = batch_of(rows=rows, length=length, words=base.config.vocab_size)
    step = step_of(model, send_to_device(batch, model.device), perturbation=perturbation)
    product, product_flops = matrix_product(where)
    for warm_up in (step, product) * 3:
        warm_up()
    device = torch.device(where)
    products = max(1, round(timed(step, device) / timed(product, device)))

    def as_long() -> None:
        for _ in range(products):
            product()

    reached, possible = [], []
    for _ in range(rounds):
        reached.append(flops / timed(step, device) / 1e12)
        possible.append(products * product_flops / timed(as_long, device) / 1e12)
    line = compared(
        f"a step of {rows} × {length} tokens, {base.num_parameters() / 1e9:.3g} B weights",
        "TFLOP/s",
        ours=reached,
        theirs=possible,
        against="its matrix products",
        target=TARGET if where == "cuda" else None,
    )
    report([line], json_file)


def model_flops(base: Any, *, tokens: int) -> float:
    """Return 4 for each weight and token; the embedding is looked up, not multiplied with."""
    looked_up = base.get_input_embeddings().weight.numel()
    return 4.0 * (base.num_parameters() - looked_up) * tokens


def batch_of(*, rows: int, length: int, words: int) -> dict[str, Any]:
    """Return full rows, of which every token but the first carries loss."""
    ids = torch.randint(3, words, (rows, length)).tolist()
    return unpadded.collate([{"input_ids": row, "labels": row} for row in ids])


def step_of(model: Any, batch: dict[str, Any], *, perturbation: str) -> Callable[[], None]:
    """Return an optimizer step on a batch; a bf16 base computes under autocast, as in a run."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
    moved = build(SPECS[perturbation], model, optimizer, total_steps=1000, seed=0)
    unpadded.score_answers(model.get_base_model())
    device, narrow = model.device.type, model.dtype == torch.bfloat16

    def step() -> None:
        optimizer.zero_grad()
        with unpadded.each_row_alone(model), moved.perturbed() if moved else nullcontext():
            with torch.autocast(device, torch.bfloat16, enabled=narrow):
                loss = model(**batch).cost / len(batch["scored"])
            loss.backward()
        optimizer.step()

    return step


def matrix_product(device: str) -> tuple[Callable[[], None], float]:
    """Return a product of two square matrices of the model's type, and its FLOPs."""
    side = SIDE[device]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)

    def product() -> None:
        torch.mm(left, right, out=out)

    return product, 2.0 * side**3


if __name__ == "__main__":
    typer.run(main)
