"""Sharpness: how much the loss rises in a ball around the weights, at worst and on average.

Source: the worst case as in "Sharpness-Aware Minimization" (arXiv 2010.01412, eq. 1), found by a
few ascent steps on the sphere (for a quadratic loss that is power iteration); the average over
random directions as in Flat-LoRA (arXiv 2409.14396). The radius is relative to the length of the
weights, so that methods whose factors have other scales can be compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-12


@dataclass(frozen=True)
class Sharpness:
    """Increase of the loss, in its own unit: at the worst point found, and the mean."""

    worst: float
    mean: float


def sharpness(
    parameters: Sequence[Tensor],
    loss: Callable[[], Tensor],
    *,
    rho: float,
    seed: int,
    ascent_steps: int = 3,
    directions: int = 8,
) -> Sharpness:
    """Measure around `parameters`, which come back bit for bit, also after an exception.

    Args:
        parameters: what spans the ball, of any shapes; they require gradients.
        loss: the scalar loss at the current values, deterministic.
        rho: radius of the ball over the norm of all parameters together.
        seed: of the random directions; the same seed and shapes give the same ones.
        ascent_steps: gradient evaluations for the worst point.
        directions: random directions for the mean.
    """
    clean = [parameter.detach().clone() for parameter in parameters]
    radius = rho * _length(clean)
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            start = loss()
            risen = [
                _at(parameters, clean, _random(clean, generator), radius, loss) - start
                for _ in range(directions)
            ]
        direction = _random(clean, generator)
        highest = torch.stack(risen).max()
        for _ in range(ascent_steps):
            _move(parameters, clean, direction, radius)
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(), list(parameters))
            direction = _unit([gradient.float() for gradient in gradients])
            with torch.no_grad():
                rise = _at(parameters, clean, direction, radius, loss) - start
            highest = torch.maximum(highest, rise)
    finally:
        _restore(parameters, clean)
    return Sharpness(worst=float(highest), mean=float(torch.stack(risen).mean()))


def _at(
    parameters: Sequence[Tensor],
    clean: Sequence[Tensor],
    direction: Sequence[Tensor],
    radius: Tensor,
    loss: Callable[[], Tensor],
) -> Tensor:
    _move(parameters, clean, direction, radius)
    return loss()


@torch.no_grad()
def _move(
    parameters: Sequence[Tensor],
    clean: Sequence[Tensor],
    direction: Sequence[Tensor],
    radius: Tensor,
) -> None:
    for parameter, origin, unit in zip(parameters, clean, direction, strict=True):
        parameter.copy_(origin.float() + radius * unit)


@torch.no_grad()
def _restore(parameters: Sequence[Tensor], clean: Sequence[Tensor]) -> None:
    torch._foreach_copy_(list(parameters), list(clean))


def _random(like: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Draw on the CPU: the directions are the same on every device."""
    drawn = [torch.randn(tensor.shape, generator=generator).to(tensor.device) for tensor in like]
    return _unit(drawn)


def _unit(tensors: Sequence[Tensor]) -> list[Tensor]:
    length = _length(tensors) + EPS
    return [tensor / length for tensor in tensors]


def _length(tensors: Sequence[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]
    length: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return length
