"""Which perturbation a run has: built from its spec, on the model and the optimizer of the run."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from app.jobs.spec import PerturbationSpec
from worker.optim.groups import lora_modules
from worker.optim.mgpo import MGPO, Momentum
from worker.optim.noise import NoisyLayer, WeightNoise
from worker.trainer.faults import RunError

Modules = Mapping[str, Sequence[Tensor]]


class Perturbation(Protocol):
    """Moves the point where the gradient is taken; the weights at rest are clean."""

    def perturbed(self) -> AbstractContextManager[None]:
        """Let forward and backward see other weights, and put the exact bits back."""

    def metrics(self) -> dict[str, float]:
        """Return what the last perturbation was like."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what an exact resume needs beside the model and the optimizer."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""


def build(
    spec: PerturbationSpec,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    total_steps: int,
    seed: int,
    modules: Modules | None = None,
    momentum: Momentum | None = None,
) -> Perturbation | None:
    """Return the perturbation that the spec asks for, None for none.

    Args:
        total_steps: optimizer steps of the whole run, which schedules and ramps span.
        seed: of the run; noise follows from it.
        modules: what MGPO moves; the LoRA factors when left out.
        momentum: where MGPO finds v; the optimizer's exp_avg when left out.

    Raises:
        RunError: the model has nothing to perturb in this way.
    """
    if spec.type == "none":
        return None
    try:
        if spec.type == "mgpo":
            moved = lora_modules(model.named_parameters()) if modules is None else modules
            return _mgpo(spec, moved, optimizer, total_steps=total_steps, momentum=momentum)
        return WeightNoise(
            noisy_layers(model),
            optimizer,
            kind=spec.type,
            rho=spec.rho or 0.0,
            beta=(spec.beta or 0.0) if spec.type == "ggpo" else 0.0,
            total_steps=total_steps,
            seed=seed,
            start_step=spec.start_step,
        )
    except ValueError as error:
        message = f"The perturbation {spec.type} does not fit: {error}."
        raise RunError("invalid_perturbation", message, param="perturbation.type") from error


def rho_schedule(
    rho: float, shape: Literal["constant", "linear", "cosine"], *, total_steps: int
) -> float | Callable[[int], float]:
    """Return ρ, or ρ by how many steps are done: down to 0 at the end of the run."""
    if shape == "constant":
        return rho

    def decayed(done: int) -> float:
        progress = min(done / total_steps, 1.0)
        left = 1 - progress if shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return rho * left

    return decayed


def noisy_layers(model: nn.Module) -> list[NoisyLayer]:
    """Return the linear layers that plain LoRA adapts; DoRA and the like are no plain W + s B A."""
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, LoraLinear) or not isinstance(module.base_layer, nn.Linear):
            continue
        adapter = module.active_adapters[0]
        if adapter in module.lora_A and adapter not in module.lora_variant:
            a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
            found.append(NoisyLayer(name, module.base_layer, a, b, module.scaling[adapter]))
    return found


def _mgpo(
    spec: PerturbationSpec,
    modules: Modules,
    optimizer: torch.optim.Optimizer,
    *,
    total_steps: int,
    momentum: Momentum | None,
) -> MGPO:
    assert spec.rho is not None and spec.beta is not None, "an mgpo spec is resolved"
    return MGPO(
        modules,
        optimizer,
        rho=rho_schedule(spec.rho, spec.rho_schedule or "constant", total_steps=total_steps),
        beta=spec.beta,
        mu=spec.mu,
        norm=spec.norm or "module",
        apn=spec.apn or "relative",
        apn_cap=spec.apn_cap or 4.0,
        start_step=spec.start_step,
        momentum=momentum,
    )
