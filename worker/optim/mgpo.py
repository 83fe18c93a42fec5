"""LoRA-MGPO: gradients are taken a look-ahead down the momentum; the weights at rest are clean.

Source: "LoRA-MGPO: Mitigating Double Descent in Low-Rank Adaptation via Momentum-Guided
Perturbation Optimization", eqs. 4-8, in factor space: A and B are perturbed, never an m×n tensor.
Symbols: ε perturbation, ρ its length, v momentum, ḡ smoothed gradient norm, s adaptive scale,
l a module (the LoRA factors of one linear layer).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

EPS = 1e-12
RELATIVE_LOW, RELATIVE_HIGH = 0.25, 4.0

Norm = Literal["module", "global"]
Apn = Literal["relative", "paper", "off"]
Rho = float | Callable[[int], float]
Momentum = Callable[[Tensor], Tensor | None]


def smoothed(g_bar_L: Tensor, n_L: Tensor, *, beta: float) -> Tensor:
    """ḡ ← β ḡ + (1−β) n, and ḡ = n where there was none yet, marked by NaN (eq. 8)."""
    return torch.where(g_bar_L.isnan(), n_L, beta * g_bar_L + (1 - beta) * n_L)


def adaptive_scale(g_bar_L: Tensor, *, apn: Apn, cap: float) -> Tensor:
    """s_l from each module's smoothed gradient norm (APN, eq. 4 made finite).

    off: 1. relative: clamp(mean(ḡ)/ḡ_l, ¼, 4), dimensionless. paper: min(1/ḡ_l, cap).
    Finite for every ḡ ≥ 0; modules without a ḡ yet (NaN) get 1 and do not enter the mean.
    """
    if apn == "off":
        return torch.ones_like(g_bar_L)
    if apn == "paper":
        return (1 / g_bar_L).clamp(max=cap).nan_to_num(1.0)
    ratio = g_bar_L.nanmean() / g_bar_L
    return ratio.clamp(RELATIVE_LOW, RELATIVE_HIGH).nan_to_num(1.0)


def look_ahead_factor(v_norm_L: Tensor, s_L: Tensor, *, rho: float, norm: Norm) -> Tensor:
    """What v_l is multiplied with to give ε_l: −ρ s_l / N (eq. 6).

    N is ‖v_l‖ for "module", the norm over all modules for "global".
    """
    length = v_norm_L if norm == "module" else v_norm_L.square().sum().sqrt()
    return -rho * s_L / (length + EPS)


class MGPO:
    """Perturbs the parameters of `modules` inside `perturbed()`, following `optimizer`.

    Args:
        modules: name → the parameters that share one ε_l, any shapes and float types.
        optimizer: its step is hooked: gradient norms are taken before it, ε is renewed after it.
        rho: ρ, the length of each module's ε before scaling; a number or a function of the step.
        beta: β of ḡ.
        mu: μ of an own momentum v ← μ v + g; None reads the optimizer's exp_avg.
        norm: "module" or "global"; apn: "relative", "paper" or "off"; apn_cap bounds "paper".
        start_step: no perturbation until this many optimizer steps are done.
        momentum: where v comes from; the default reads optimizer.state[p]["exp_avg"].

    Raises:
        ValueError: ρ, β, μ or the cap is outside its range, or there is nothing to perturb.
    """

    def __init__(
        self,
        modules: Mapping[str, Sequence[Tensor]],
        optimizer: torch.optim.Optimizer,
        *,
        rho: Rho,
        beta: float,
        mu: float | None = None,
        norm: Norm = "module",
        apn: Apn = "relative",
        apn_cap: float = 4.0,
        start_step: int = 0,
        momentum: Momentum | None = None,
    ) -> None:
        _check(modules, rho=rho, beta=beta, mu=mu, apn_cap=apn_cap)
        self._names = list(modules)
        self._modules = [list(parameters) for parameters in modules.values()]
        self._parameters = [p for parameters in self._modules for p in parameters]
        sizes = [len(parameters) for parameters in self._modules]
        device = self._parameters[0].device
        exact = torch.promote_types(self._parameters[0].dtype, torch.float32)
        self._owner_P = torch.repeat_interleave(torch.tensor(sizes)).to(device)
        self._optimizer = optimizer
        self._rho, self._beta, self._mu = rho, beta, mu
        self._norm, self._apn, self._apn_cap = norm, apn, apn_cap
        self._start_step = start_step
        self._momentum = momentum or self._exp_avg
        self._step = 0
        self._g_bar_L = torch.full((len(sizes),), torch.nan, dtype=exact, device=device)
        self._own_v: list[Tensor] = []
        if mu is not None:
            self._own_v = [torch.zeros_like(p, dtype=exact) for p in self._parameters]
        self._clean: list[Tensor] = []
        self._factors: list[Tensor] | None = None  # None: dirty, to be renewed
        self._active: list[int] = []
        self._inside = False
        self._last: dict[str, Tensor] = {}
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Move the weights by ε; put the exact bits back at the end, also after an exception."""
        assert not self._inside, "perturbed() does not nest"
        moved = self._move()
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
            self._restore(moved)

    def metrics(self) -> dict[str, float]:
        """Return max_l ‖ε_l‖, the mean of s_l and the share of clamped modules, of the last ε.

        The only place that waits for the device.
        """
        zero = torch.zeros(())
        names = ("perturbation_norm_max", "perturbation_scale_mean", "perturbation_clamped_share")
        return {name: self._last.get(name, zero).item() for name in names}

    def state_dict(self) -> dict[str, Tensor]:
        """Return what cannot be recomputed: ḡ, the step, and v when it is our own."""
        state = {"g_bar": self._g_bar_L.clone(), "step": torch.tensor(self._step)}
        for index, v in enumerate(self._own_v):
            state[f"v.{index}"] = v.clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state; the optimizer's own state is loaded by itself.

        Raises:
            ValueError: the state is of other modules.
        """
        if state["g_bar"].shape != self._g_bar_L.shape:
            raise ValueError(
                f"the state is of {len(state['g_bar'])} modules, not {len(self._names)}"
            )
        self._g_bar_L = state["g_bar"].to(self._g_bar_L)
        self._step = int(state["step"])
        for index, v in enumerate(self._own_v):
            v.copy_(state[f"v.{index}"])
        self._factors = None

    @torch.no_grad()
    def _move(self) -> list[int]:
        """Copy the clean weights and add ε; return which parameters moved."""
        if self._step == 0 or self._step < self._start_step or self._rho_now() == 0:
            return []
        if self._factors is None:
            self._renew()
        assert self._factors is not None
        parameters = [self._parameters[index] for index in self._active]
        if not self._clean:
            self._clean = [torch.empty_like(p) for p in self._parameters]
        clean = [self._clean[index] for index in self._active]
        torch._foreach_copy_(clean, parameters)
        for parameter, index, factor in zip(parameters, self._active, self._factors, strict=True):
            v = self._v(index)
            assert v is not None
            parameter.add_((v * factor).to(parameter.dtype))
        return self._active

    @torch.no_grad()
    def _restore(self, moved: list[int]) -> None:
        if moved:
            torch._foreach_copy_(
                [self._parameters[index] for index in moved],
                [self._clean[index] for index in moved],
            )

    def _renew(self) -> None:
        """Compute −ρ s_l / N for every parameter that has a momentum; no host synchronisation."""
        momenta = [self._v(index) for index in range(len(self._parameters))]
        self._active = [index for index, v in enumerate(momenta) if v is not None]
        present = [v for v in momenta if v is not None]
        v_norm_L = self._joint_norm(present, self._active)
        s_L = adaptive_scale(self._g_bar_L, apn=self._apn, cap=self._apn_cap)
        factor_L = look_ahead_factor(v_norm_L, s_L, rho=self._rho_now(), norm=self._norm)
        factor_P = factor_L[self._owner_P]
        self._factors = [factor_P[index] for index in self._active]
        self._last = {
            "perturbation_norm_max": (factor_L.abs() * v_norm_L).max(),
            "perturbation_scale_mean": s_L.mean(),
            "perturbation_clamped_share": self._clamped(s_L).float().mean(),
        }

    def _clamped(self, s_L: Tensor) -> Tensor:
        if self._apn == "paper":
            return s_L >= self._apn_cap
        if self._apn == "relative":
            return (s_L <= RELATIVE_LOW) | (s_L >= RELATIVE_HIGH)
        return torch.zeros_like(s_L)

    @torch.no_grad()
    def _before_step(self, *_: Any) -> None:
        """Take ‖g_l‖ into ḡ, and g into the own momentum. The weights are clean here."""
        assert not self._inside, "optimizer.step() inside perturbed()"
        active = [i for i, p in enumerate(self._parameters) if p.grad is not None]
        gradients = [self._parameters[index].grad for index in active]
        present = [g for g in gradients if g is not None]
        if present:
            n_L = self._joint_norm(present, active)
            seen_L = torch.zeros_like(self._g_bar_L, dtype=torch.bool)
            seen_L[self._owner_P[active]] = True
            fresh_L = smoothed(self._g_bar_L, n_L, beta=self._beta)
            self._g_bar_L = torch.where(seen_L, fresh_L, self._g_bar_L)
        if self._mu is not None:
            for index, gradient in zip(active, present, strict=True):
                self._own_v[index].mul_(self._mu).add_(gradient)

    def _after_step(self, *_: Any) -> None:
        self._step += 1
        self._factors = None

    def _joint_norm(self, tensors: Sequence[Tensor], indices: Sequence[int]) -> Tensor:
        """Return ‖(t, …)‖₂ over the tensors of each module, in fp32 at least, shape (L,)."""
        total_L = torch.zeros_like(self._g_bar_L)
        if tensors:
            squares_P = torch.stack(
                torch._foreach_norm([tensor.to(total_L.dtype) for tensor in tensors])
            ).square()
            total_L.index_add_(0, self._owner_P[list(indices)], squares_P)
        return total_L.sqrt()

    def _v(self, index: int) -> Tensor | None:
        if self._mu is not None:
            return self._own_v[index]
        return self._momentum(self._parameters[index])

    def _exp_avg(self, parameter: Tensor) -> Tensor | None:
        found: Tensor | None = self._optimizer.state.get(parameter, {}).get("exp_avg")
        return found

    def _rho_now(self) -> float:
        return self._rho(self._step) if callable(self._rho) else self._rho


def _check(
    modules: Mapping[str, Sequence[Tensor]],
    *,
    rho: Rho,
    beta: float,
    mu: float | None,
    apn_cap: float,
) -> None:
    if not any(len(parameters) for parameters in modules.values()):
        raise ValueError("there is no parameter to perturb")
    if not callable(rho) and rho < 0:
        raise ValueError(f"rho is {rho}; a length is not negative")
    if not 0 <= beta < 1 or not (mu is None or 0 <= mu < 1):
        raise ValueError(f"beta {beta} and mu {mu} lie in [0, 1)")
    if apn_cap <= 0:
        raise ValueError(f"apn_cap is {apn_cap}; it must be positive")
