"""DeepSpeed's flat shards as MGPO needs them: gradients and momenta whole, one step at a time."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist

from app.jobs.spec import ResourcesSpec, TrainingSpec

Hook = Callable[..., None]
BUCKET = 1 << 24  # elements; what LoRA trains rarely fills one, and DeepSpeed allocates it whole


class ZeroOptimizer(Protocol):
    """What is read of DeepSpeed's optimizer of stages 1 and 2, by group of parameters.

    A group's parameters lie end to end, in this order, in a flat tensor, of which each rank keeps
    an equal part.
    """

    round_robin_bit16_groups: Sequence[Sequence[nn.Parameter]]
    single_partition_of_fp32_groups: Sequence[Tensor]


class WholeSteps:
    """The steps of an optimizer that DeepSpeed has sharded, with everything in one piece.

    DeepSpeed's stages 1 and 2 step group by group, on a flat shard that has no gradient before and
    none after. Here the hooks run once a step: before the last group's with each parameter's whole
    gradient in `.grad`, averaged over the ranks and clipped, and after it.

    Norms are not summed from fragments: they would be rounded otherwise than a whole parameter's,
    and the stages would part ways in the last bit. An own momentum needs whole gradients anyway.
    The cost is one all_gather of what is trained, and one of the momentum, a step.
    """

    def __init__(
        self, innermost: torch.optim.Optimizer, sharded: Callable[[], ZeroOptimizer]
    ) -> None:
        self._innermost = innermost
        self._sharded = sharded
        self._before: list[Hook] = []
        self._after: list[Hook] = []
        self._momenta: dict[Tensor, Tensor] = {}
        innermost.register_step_pre_hook(self._before_group)
        innermost.register_step_post_hook(self._after_group)

    def register_step_pre_hook(self, hook: Hook) -> None:
        self._before.append(hook)

    def register_step_post_hook(self, hook: Hook) -> None:
        self._after.append(hook)

    def momentum(self, parameter: Tensor) -> Tensor | None:
        """Return the whole exp_avg of a parameter, gathered once a step; all ranks must ask."""
        if not self._momenta:
            for index, shard in enumerate(self._sharded().single_partition_of_fp32_groups):
                state = self._innermost.state.get(shard, {})
                if "exp_avg" in state:
                    self._momenta |= self._whole(index, state["exp_avg"])
        return self._momenta.get(parameter)

    @torch.no_grad()
    def _before_group(self, *_: Any) -> None:
        index = self._group()
        shard = self._sharded().single_partition_of_fp32_groups[index]
        if shard.grad is not None:
            for parameter, gradient in self._whole(index, shard.grad).items():
                parameter.grad = gradient.to(parameter.dtype)
        if self._is_last(index):
            for hook in self._before:
                hook()
            for group in self._sharded().round_robin_bit16_groups:
                for parameter in group:
                    parameter.grad = None

    def _after_group(self, *_: Any) -> None:
        if self._is_last(self._group()):
            self._momenta.clear()
            for hook in self._after:
                hook()

    def _group(self) -> int:
        """Return which group steps: DeepSpeed shows the optimizer one at a time."""
        (stepping,) = self._innermost.param_groups[0]["params"]
        shards = self._sharded().single_partition_of_fp32_groups
        return next(index for index, shard in enumerate(shards) if shard is stepping)

    def _is_last(self, index: int) -> bool:
        return index == len(self._sharded().single_partition_of_fp32_groups) - 1

    def _whole(self, index: int, shard: Tensor) -> dict[Tensor, Tensor]:
        """Gather a group's shards; return each parameter's part of them."""
        parameters = self._sharded().round_robin_bit16_groups[index]
        mine = shard.to(parameters[0].device)
        flat = mine.new_empty(mine.numel() * dist.get_world_size())
        dist.all_gather_into_tensor(flat, mine)
        sizes = [parameter.numel() for parameter in parameters]
        pieces = torch.split(flat[: sum(sizes)], sizes)  # what is left fills the last shard up
        return {
            parameter: piece.view_as(parameter)
            for parameter, piece in zip(parameters, pieces, strict=True)
        }


def deepspeed_config(resources: ResourcesSpec, training: TrainingSpec) -> dict[str, Any] | None:
    """Return what DeepSpeed is told, None where it does not train.

    What is trained stays fp32 in every precision: a bf16 base runs under autocast, as without
    DeepSpeed. The optimizer is torch's AdamW everywhere, also offloaded: the same bits, and nothing
    to compile.
    """
    if not resources.sharded:
        return None
    zero: dict[str, Any] = {
        "stage": resources.zero_stage,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        "overlap_comm": False,
    }
    if resources.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu"}
    share = training.batch_size // resources.gpus
    return {
        "train_batch_size": training.batch_size,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": share // training.micro_batch_size,
        "gradient_clipping": training.max_grad_norm,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
