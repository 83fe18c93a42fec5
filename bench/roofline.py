"""What a step would take on a GPU that is not here: what it computes and moves, at a chip's rates.

`python -m bench.roofline` takes the step of `bench.mfu` on tensors without data, and notes of every
operator its FLOPs and the bytes it reads and writes. Each takes as long as the longer of the two at
the chip's rates, and the step at least as long as their sum: what kernels are short of those rates,
and gaps between them, come on top. It tells where time goes before anybody has the chip; it is no
measurement. liger-kernel is not counted: its kernels are no operators of torch's.
"""

import weakref
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry
from transformers import LlamaConfig, LlamaForCausalLM

from bench.mfu import batch_of, model_flops, step_of
from bench.overhead import LARGE, adapted

ATTENTION = "attention"
BACKWARD = 2.5  # of attention, times its forward: five products for two
ATTENTION_SHARE = 0.6  # of the rate of large products, what attention's kernels reach


@dataclass
class Total:
    """What all calls of an operator come to."""

    calls: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0


class Count(TorchDispatchMode):
    """Notes what every operator computes and moves, and how much memory is taken at most."""

    def __init__(self, *, length: int, flops: float, bandwidth: float) -> None:
        super().__init__()
        self.found: dict[str, Total] = defaultdict(Total)
        self.peak = 0
        self._length, self._flops, self._bandwidth = length, flops, bandwidth
        self._held: dict[int, int] = {}

    def restart(self) -> None:
        self.found.clear()
        self.peak = sum(self._held.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = list(_tensors(result))
        made = [self._hold(tensor) for tensor in outputs]
        name = func.overloadpacket.__name__
        if not (any(made) or func._schema.is_mutable) or name.startswith(("empty", "new_empty")):
            return result  # a view, or memory that nothing is written to yet
        inputs = list(_tensors((args[1:] if name == "copy_" else args, kwargs)))
        moved = float(sum(tensor.nbytes for tensor in (*inputs, *outputs)))
        if name.startswith("_foreach"):
            moved = 2.0 * sum(tensor.nbytes for tensor in inputs)
        elif name == "embedding":
            moved = 2.0 * sum(tensor.nbytes for tensor in outputs)
        counted = flop_registry.get(func.overloadpacket)
        flops = float(counted(*args, **kwargs, out_val=result)) if counted else 0.0
        seconds = max(flops / self._flops, moved / self._bandwidth)
        if ATTENTION in name:
            flops = self._attention(args[0], backward="backward" in name)
            seconds = flops / self._flops / ATTENTION_SHARE
        total = self.found[name]
        total.calls += 1
        total.flops += flops
        total.bytes += moved
        total.seconds += seconds
        return result

    def _attention(self, query: Tensor, *, backward: bool) -> float:
        """Two products of rows of so many tokens, of which the causal mask leaves half."""
        return 2.0 * query.numel() * self._length * (BACKWARD if backward else 1.0)

    def _hold(self, tensor: Tensor) -> bool:
        """Note a tensor's memory until it is given back; return whether it is new."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._held:
            return False
        self._held[storage._cdata] = storage.nbytes()
        weakref.finalize(storage, self._held.pop, storage._cdata)
        self.peak = max(self.peak, sum(self._held.values()))
        return True


def main(
    rows: Annotated[int, typer.Option(help="Rows of a step.")] = 4,
    sequence: Annotated[int, typer.Option(help="Tokens of a row.")] = 2048,
    rank: Annotated[int, typer.Option(help="LoRA's r.")] = 16,
    layers: Annotated[int, typer.Option(help="Layers of the 7B shape.")] = 32,
    plain: Annotated[bool, typer.Option("--plain", help="PEFT's own layers.")] = False,
    perturbation: Annotated[str, typer.Option(help="mgpo or none.")] = "mgpo",
    tflops: Annotated[float, typer.Option(help="Of large bf16 products; an H100's.")] = 690.0,
    gigabytes: Annotated[float, typer.Option(help="Of memory a second; an H100's.")] = 2850.0,
) -> None:
    """Count a step of the 7B shape, and print what takes its time."""
    count = Count(length=sequence, flops=tflops * 1e12, bandwidth=gigabytes * 1e9)
    fake = FakeTensorMode()
    model = adapted(shaped(layers), rank=rank, fused=not plain)
    useful = model_flops(model.get_base_model(), tokens=rows * sequence)
    batch = batch_of(rows=rows, length=sequence, words=model.config.vocab_size)
    with fake, count:
        without_data(model)
        batch = tree_map_only(Tensor, fake.from_tensor, batch)
        step = step_of(model, batch, perturbation=perturbation)
        step()  # which makes the optimizer's state
        count.restart()
        step()
    show(count, useful=useful, tflops=tflops)


def shaped(layers: int) -> Any:
    """Return the base in bf16, with shapes alone."""
    config = LlamaConfig(**LARGE | {"num_hidden_layers": layers}, use_cache=False)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        base = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return base


def without_data(model: nn.Module) -> None:
    """Let every tensor be one of the mode that is on, of the same shape."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fresh = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(fresh, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def show(count: Count, *, useful: float, tflops: float) -> None:
    table = Table("operator", "calls", "TFLOP", "GB", "ms")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, total in sorted(count.found.items(), key=lambda item: -item[1].seconds)[:20]:
        numbers = total.flops / 1e12, total.bytes / 1e9, 1e3 * total.seconds
        table.add_row(name, str(total.calls), *(f"{number:.1f}" for number in numbers))
    Console().print(table)
    seconds = sum(total.seconds for total in count.found.values())
    Console().print(
        f"At least {1e3 * seconds:.0f} ms, {count.peak / 2**30:.1f} GiB;"
        f" at most {useful / seconds / tflops / 1e12:.1%} of the rate of large products",
        highlight=False,
    )


def _tensors(tree: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


if __name__ == "__main__":
    typer.run(main)
