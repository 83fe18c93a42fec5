"""LoRA's linear layers as matrix products alone, while they train.

PEFT computes W x, B A x and their sum one after another, on an input that it casts to the factors'
type: under autocast an adapted layer reads and writes its outputs four times more than its products
need, and keeps a copy of its input for itself. Here the last product adds to what the first one
left, so nothing else passes over the tokens, and layers that share an input of autocast's type
share what is kept. Sums are rounded less often than PEFT's; in fp32 both are the same up to that.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

# Legend: T tokens, I inputs and O outputs of a layer, R LoRA's rank.


def fuse(model: nn.Module) -> int:
    """Replace the forward of a model's adapted linear layers; return how many there are.

    A layer keeps PEFT's forward where it is in evaluation, switched off or merged, has dropout, a
    weight that trains, or more to it than W + s B A (DoRA, several adapters, noise on its weight),
    and where an input of another type comes without autocast, as where a policy writes.
    """
    found = [module for module in model.modules() if type(module) is LoraLinear]
    for layer in found:
        plain = layer.forward
        setattr(layer, "forward", partial(_forward, layer, plain))  # noqa: B010
    return len(found)


def adapted_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, *, scaling: float
) -> Tensor:
    """Return x Wᵀ + bias + s x Aᵀ Bᵀ, (…, I) to (…, O); W and bias have no gradient.

    Under autocast all are taken in its type, and the factors' gradients come back in their own.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, a, b = (each.to(dtype) for each in (x, weight, a, b))
        bias = None if bias is None else bias.to(dtype)
    x_TI = x.reshape(-1, x.shape[-1])
    # Shaped out here: what a function of its own returns as a view may not be changed in place.
    y_TO: Tensor = _AdaptedLinear.apply(x_TI, weight, bias, a, b, scaling)  # type: ignore[no-untyped-call]  # of torch
    return y_TO.view(*x.shape[:-1], weight.shape[0])


class _AdaptedLinear(torch.autograd.Function):
    """Keeps the input and its R products with A beside what the layer has."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float
    ) -> Tensor:
        h_TR = x_TI @ a.T
        y_TO = linear(x_TI, weight, bias).addmm_(h_TR, b.T, alpha=s)
        ctx.save_for_backward(x_TI, weight, a, b, h_TR)
        ctx.s = s
        return y_TO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight, a, b, h_TR = ctx.saved_tensors
        g_TR = g_TO @ b
        g_a = (g_TR.T @ x_TI).mul_(ctx.s)
        g_b = (g_TO.T @ h_TR).mul_(ctx.s)
        if not ctx.needs_input_grad[0]:
            return None, None, None, g_a, g_b, None
        g_TI = (g_TO @ weight).addmm_(g_TR, a, alpha=ctx.s)
        return g_TI, None, None, g_a, g_b, None


def _forward(layer: Any, plain: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Stand in for an adapted layer's forward."""
    if args or kwargs or not (_is_plain(layer) and _are_alike(layer, x)):
        return plain(x, *args, **kwargs)
    (adapter,) = layer.active_adapters
    base, a, b = layer.base_layer, layer.lora_A[adapter], layer.lora_B[adapter]
    return adapted_linear(
        x, base.weight, base.bias, a.weight, b.weight, scaling=layer.scaling[adapter]
    )


def _is_plain(layer: Any) -> bool:
    """Whether a layer is W + s B A and nothing else, now that it is called."""
    base, adapters = layer.base_layer, layer.active_adapters
    return (
        layer.training
        and not layer.disable_adapters
        and not layer.merged
        and len(adapters) == 1
        and adapters[0] in layer.lora_A
        and adapters[0] not in layer.lora_variant
        and type(layer.lora_dropout[adapters[0]]) is nn.Identity
        and layer.lora_A[adapters[0]].bias is None
        and layer.lora_B[adapters[0]].bias is None
        and type(base) is nn.Linear
        and "forward" not in vars(base)  # where there is noise, it has its own
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
    )


def _are_alike(layer: Any, x: Tensor) -> bool:
    """Whether an input can be multiplied with the weights; autocast makes all of one type."""
    adapter = layer.active_adapters[0]
    weights = layer.base_layer.weight, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return torch.is_autocast_enabled(x.device.type) or all(w.dtype == x.dtype for w in weights)
