"""What a perturbation costs: step time and peak memory of each against none, on the same batch.

`python -m bench.overhead` times alternating steps on one model, so that all of them see the same
machine; the ratio of each round is taken against the plain step of that round. On CUDA the model
is a random LLaMA of the 7B shape in bf16 with gradient checkpointing, on the CPU a small one;
--model takes one from a folder. "waits" counts what makes the host wait for the device in a step,
beyond the plain step's.
"""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from app.jobs.spec import PerturbationSpec
from bench.result import JsonFile, Line, Target, compared, write
from worker.trainer import kernels
from worker.trainer.fused import fuse
from worker.trainer.perturbations import build

SPECS = {
    "none": PerturbationSpec(type="none"),
    "mgpo": PerturbationSpec(type="mgpo", rho=0.05, beta=0.9, norm="module", apn="relative"),
    "random": PerturbationSpec(type="random", rho=0.05),
    "ggpo": PerturbationSpec(type="ggpo", rho=0.03, beta=0.01),
}
TARGETS = {"mgpo": Target(sign="≤", bound=1.02, of="ratio")}  # of time and memory
SAM = "sam"  # two passes, for scale
WAITS = (  # what makes the host wait for a device
    "aten::_local_scalar_dense",
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
)
LARGE = {  # LLaMA-2-7B
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
}

Step = Callable[[], None]


@dataclass
class Cost:
    """What one variant took: seconds by round, peak bytes, waits of one step."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    waits: int = 0


def main(
    model: Annotated[Path | None, typer.Option(help="A model folder; else a random LLaMA.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; found by itself.")] = "auto",
    rank: Annotated[list[int] | None, typer.Option(help="LoRA's r; may be repeated.")] = None,
    batch: Annotated[int, typer.Option(help="Rows of a step.")] = 4,
    sequence: Annotated[int | None, typer.Option(help="Tokens of a row: 1024 on CUDA.")] = None,
    rounds: Annotated[int, typer.Option(help="Timed steps of each variant.")] = 20,
    json_file: JsonFile = None,
) -> None:
    """Measure what each perturbation costs against plain LoRA, and print a table for each rank."""
    where = "cuda" if device == "auto" and torch.cuda.is_available() else device
    where = "cpu" if where == "auto" else where
    lines = []
    for r in rank or [8, 128]:
        base = load(model, where)
        lora = adapted(base, rank=r)
        length = sequence or (1024 if where == "cuda" else 128)
        ids = torch.randint(3, base.config.vocab_size, (batch, length), device=where)
        costs = measure(lora, ids, rounds=rounds)
        show(
            costs, title=f"{model or 'random LLaMA'} · {where} · r {r} · {batch} × {length} tokens"
        )
        lines += lines_of(costs, of=f"r {r}, {batch} × {length} tokens, {where}")
        del base, lora
    if json_file is not None:
        write(json_file, lines)


def load(folder: Path | None, device: str, *, checkpointing: bool = True) -> Any:
    """Return the base: fp32 on the CPU; bf16 and, if asked, gradient checkpointing on CUDA."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if folder is not None:
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
    else:
        torch.manual_seed(0)
        config = LlamaConfig(**(LARGE if device == "cuda" else SMALL))
        with torch.device(device):
            torch.set_default_dtype(dtype)
            base = LlamaForCausalLM(config)
            torch.set_default_dtype(torch.float32)
    base.config.use_cache = False
    if fault := kernels.use(base, contextlib.ExitStack()):
        Console(stderr=True).print(f"liger-kernel does not work here: {fault}", markup=False)
    if device == "cuda" and checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return base


def adapted(base: Any, *, rank: int, fused: bool = True) -> Any:
    """Return the base with LoRA as the trainer has it, or else with PEFT's own layers."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    model = get_peft_model(base, config).train()
    if fused:
        fuse(model)
    return model


def measure(model: Any, ids: Tensor, *, rounds: int) -> dict[str, Cost]:
    """Return the cost of each variant; memory alone and afresh, time in alternating rounds."""
    names = [*SPECS, SAM]
    costs = {name: Cost() for name in names}
    for name in names:
        model.zero_grad()
        gc.collect()  # nothing of the variant before is given back while this one is measured
        costs[name].peak_bytes = peak_of(lambda n=name: step_of(n, model, ids), ids.device)
    steps = {name: step_of(name, model, ids) for name in names}
    for name in names * 3:
        steps[name]()
    for _ in range(rounds):
        for name in names:
            costs[name].seconds.append(timed(steps[name], ids.device))
    for name in names:
        costs[name].waits = waits_of(steps[name], ids.device)
    return costs


def step_of(name: str, model: Any, ids: Tensor) -> Step:
    """Return a training step with an optimizer of its own, as the trainer takes it."""
    factors = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(factors, lr=1e-5, weight_decay=0.0)
    spec = SPECS.get(name, SPECS["none"])
    perturbation = build(spec, model, optimizer, total_steps=1000, seed=0)

    def backward() -> None:
        device = ids.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()

    def step() -> None:
        optimizer.zero_grad()
        if name == SAM:
            backward()
            with ascended(factors):
                optimizer.zero_grad()
                backward()
        else:
            with perturbation.perturbed() if perturbation else contextlib.nullcontext():
                backward()
        optimizer.step()

    return step


@contextlib.contextmanager
def ascended(parameters: list[Tensor], rho: float = 0.05) -> Any:
    """Move up the gradient by ρ, as SAM does, and back."""
    with torch.no_grad():
        gradients = [p.grad for p in parameters if p.grad is not None]
        clean = [p.clone() for p in parameters]
        scale = rho / (torch.stack(torch._foreach_norm(gradients)).norm() + 1e-12)
        torch._foreach_add_(parameters, torch._foreach_mul(gradients, scale))
    yield
    with torch.no_grad():
        torch._foreach_copy_(parameters, clean)


def timed(step: Step, device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - began


def peak_of(make: Callable[[], Step], device: torch.device) -> int:
    """Return the peak of allocated bytes over three first steps; on the CPU, beyond the model's."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step = make()
        for _ in range(3):
            step()
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step = make()
        for _ in range(3):
            step()
    held = peak = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def waits_of(step: Step, device: torch.device) -> int:
    """Count what waits for the device within a step that has settled."""
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=activities) as found:
        step()
    return sum(event.count for event in found.key_averages() if event.key in WAITS)


def lines_of(costs: dict[str, Cost], *, of: str) -> list[Line]:
    """Return a line of the time and one of the peak memory of each variant against plain LoRA."""
    plain = costs["none"]
    found = []
    for name, cost in costs.items():
        if cost is plain:
            continue
        milliseconds = [[1e3 * s for s in each.seconds] for each in (cost, plain)]
        peaks = [[each.peak_bytes / 2**20] for each in (cost, plain)]
        for what, unit, (ours, theirs) in (("step", "ms", milliseconds), ("peak", "MiB", peaks)):
            title = f"{what} with {name}, {of}"
            target = TARGETS.get(name)
            found.append(
                compared(title, unit, ours=ours, theirs=theirs, against="none", target=target)
            )
    return found


def show(costs: dict[str, Cost], *, title: str) -> None:
    plain = costs["none"]
    table = Table(title=title)
    for column in ("type", "step, ms", "time ×", "quartiles", "peak, MiB", "memory ×", "waits"):
        table.add_column(column, justify="left" if column == "type" else "right")
    for name, cost in costs.items():
        ratios = [a / b for a, b in zip(cost.seconds, plain.seconds, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        table.add_row(
            name,
            f"{statistics.median(cost.seconds) * 1e3:.1f}",
            f"{middle:.3f}",
            f"{low:.2f}–{high:.2f}",
            f"{cost.peak_bytes / 2**20:.1f}",
            f"{cost.peak_bytes / plain.peak_bytes:.3f}",
            str(cost.waits - plain.waits),
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
