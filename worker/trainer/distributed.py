"""The ranks of a run: which one this is, and what they agree on."""

from typing import Any

import torch
from torch import distributed as dist

_agreeing: list[Any] = []  # the group of agree(): on the CPU, so that no device waits for it


def join() -> None:
    """Meet the other ranks, when torchrun started this process as one of them."""
    if not dist.is_torchelastic_launched():
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(dist.get_node_local_rank())
    dist.init_process_group("nccl" if on_gpu else "gloo")
    _agreeing.append(dist.new_group(backend="gloo"))


def leave() -> None:
    """Part from the other ranks: nothing after this may need them."""
    if dist.is_initialized():
        _agreeing.clear()
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this rank speaks for the run."""
    return not dist.is_initialized() or dist.get_rank() == 0


def is_ranked() -> bool:
    """Whether there may be other ranks."""
    return dist.is_torchelastic_launched()


def agree(*wishes: bool) -> tuple[bool, ...]:
    """Return of each wish whether any rank has it; the same answer on all, who must all ask."""
    if not _agreeing:
        return wishes
    found = torch.tensor([int(wish) for wish in wishes])
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=_agreeing[0])
    return tuple(bool(wish) for wish in found)


def wait_for_all() -> None:
    """Return once every rank has come this far."""
    agree(False)
