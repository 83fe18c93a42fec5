"""LoRA-MGPO: gradients are taken a look-ahead down the momentum; the weights at rest are clean.

Source: "LoRA-MGPO: Mitigating Double Descent in Low-Rank Adaptation via Momentum-Guided
Perturbation Optimization", eqs. 4-8, in factor space: A and B are perturbed, never an m×n tensor.
Symbols: ε perturbation, ρ its length, v momentum, ḡ smoothed gradient norm, s adaptive scale,
l a module (the LoRA factors of one linear layer).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

EPS = 1e-12
RELATIVE_LOW, RELATIVE_HIGH = 0.25, 4.0

Norm = Literal["module", "global"]
Apn = Literal["relative", "paper", "off"]
Rho = float | Callable[[int], float]
Momentum = Callable[[Tensor], Tensor | None]
T = TypeVar("T")

METRICS = ("perturbation_norm_max", "perturbation_scale_mean", "perturbation_clamped_share")


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


def clamped(s_L: Tensor, *, apn: Apn, cap: float) -> Tensor:
    """Return which modules' scales stand at a bound of `adaptive_scale`."""
    if apn == "off":
        return torch.zeros_like(s_L, dtype=torch.bool)
    if apn == "paper":
        return s_L >= cap
    return (s_L <= RELATIVE_LOW) | (s_L >= RELATIVE_HIGH)


def look_ahead_factor(v_norm_L: Tensor, s_L: Tensor, *, rho: float, norm: Norm) -> Tensor:
    """What v_l is multiplied with to give ε_l: −ρ s_l / N (eq. 6).

    N is ‖v_l‖ for "module", the norm over all modules for "global".
    """
    length = v_norm_L if norm == "module" else v_norm_L.square().sum().sqrt()
    return -rho * s_L / (length + EPS)


class MGPO:
    """Perturbs the parameters of `modules` inside `perturbed()`, following `optimizer`.

    Holds the parameters a second time while they are moved, and a copy of v when mu is set. Nothing
    but `metrics` and `state_dict` waits for the device. A step with a gradient that is not finite
    (an overflow) is not taken into ḡ and v.

    Args:
        modules: name → the parameters that share one ε_l, any shapes and float types, one device.
        optimizer: its step is hooked: gradient norms are taken before it, ε is renewed after it.
        rho: ρ, the length of each module's ε before scaling; a number, or a function of how many
            optimizer steps are done.
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
        self._parameters = [p for parameters in modules.values() for p in parameters]
        self._exact = _exact_type(self._parameters)
        self._widest = max(len(parameters) for parameters in modules.values())
        sizes = tuple(len(parameters) for parameters in modules.values())
        device = self._parameters[0].device
        # Kept for as long as the same parameters are asked for: new ones wait for the device.
        self._places = lru_cache(maxsize=8)(partial(_places, sizes, device))
        self._optimizer = optimizer
        self._rho, self._beta, self._mu = rho, beta, mu
        self._norm, self._apn, self._apn_cap = norm, apn, apn_cap
        self._start_step = start_step
        self._momentum = momentum or self._exp_avg
        self._step = 0
        self._g_bar_L = torch.full((len(sizes),), torch.nan, dtype=self._exact, device=device)
        self._own_v: list[Tensor] = []
        if mu is not None:
            self._own_v = [torch.zeros_like(p, dtype=self._exact) for p in self._parameters]
        self._clean: list[Tensor] = []
        self._factors: list[Tensor] | None = None  # −ρ s_l / N; None: dirty, to be renewed
        self._active: list[int] = []  # which parameters have a momentum
        self._moved: list[int] = []  # which are away from their clean values
        self._inside = False
        self._last_M: Tensor | None = None
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Move the weights by ε; put the exact bits back at the end, also after an exception.

        An optimizer that steps inside finds the clean weights, too.
        """
        assert not self._inside, "perturbed() does not nest"
        self._inside = True
        try:
            self._move()
            yield
        finally:
            self._inside = False
            self._restore()

    def metrics(self) -> dict[str, float]:
        """Return max_l ‖ε_l‖, the mean of s_l and the share of clamped modules, of the last ε.

        Waits for the device, once.
        """
        values = [0.0] * len(METRICS) if self._last_M is None else self._last_M.tolist()
        return dict(zip(METRICS, values, strict=True))

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
                f"the state is of {len(state['g_bar'])} modules, not {len(self._g_bar_L)}"
            )
        self._g_bar_L = state["g_bar"].to(self._g_bar_L, copy=True)
        self._step = int(state["step"])
        for index, v in enumerate(self._own_v):
            v.copy_(state[f"v.{index}"])
        self._factors = None

    @torch.no_grad()
    def _move(self) -> None:
        """Put W + ε in the place of the clean weights, which are kept and not written to."""
        if self._step == 0 or self._step < self._start_step or self._rho_now() == 0:
            self._last_M = None
            return
        if self._factors is None:
            self._factors = self._renew()
        parameters = _at(self._parameters, self._active)
        momenta = [v for index in self._active if (v := self._v(index)) is not None]
        moved = _moved(parameters, momenta, self._factors, exact=self._exact)
        self._clean = [p.data for p in parameters]
        self._moved = self._active
        for parameter, weight in zip(parameters, moved, strict=True):
            parameter.data = weight

    @torch.no_grad()
    def _restore(self) -> None:
        """Put the clean weights back: ε cannot be subtracted without rounding."""
        for index, weight in zip(self._moved, self._clean, strict=True):
            self._parameters[index].data = weight
        self._moved, self._clean = [], []

    def _renew(self) -> list[Tensor]:
        """Return −ρ s_l / N of every parameter that has a momentum, each of shape ()."""
        momenta = [self._v(index) for index in range(len(self._parameters))]
        self._active = [index for index, v in enumerate(momenta) if v is not None]
        present = [v for v in momenta if v is not None]
        v_norm_L = self._joint_norm(present, self._active)
        s_L = adaptive_scale(self._g_bar_L, apn=self._apn, cap=self._apn_cap)
        factor_L = look_ahead_factor(v_norm_L, s_L, rho=self._rho_now(), norm=self._norm)
        clamped_L = clamped(s_L, apn=self._apn, cap=self._apn_cap)
        self._last_M = torch.stack(
            [(factor_L.abs() * v_norm_L).max(), s_L.mean(), clamped_L.to(s_L.dtype).mean()]
        )
        return list(factor_L[self._places(tuple(self._active)).owner_P].unbind())

    @torch.no_grad()
    def _before_step(self, *_: Any) -> None:
        """Restore the weights; take ‖g_l‖ into ḡ, and g into the own momentum."""
        self._restore()
        active = [i for i, p in enumerate(self._parameters) if p.grad is not None]
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if not gradients:
            return
        n_L = self._joint_norm(gradients, active)
        finite = n_L.isfinite().all()
        taken_L = self._places(tuple(active)).owns_L & finite
        fresh_L = smoothed(self._g_bar_L, n_L, beta=self._beta)
        self._g_bar_L = torch.where(taken_L, fresh_L, self._g_bar_L)
        if self._mu is not None:
            v = _at(self._own_v, active)
            torch._foreach_mul_(v, torch.where(finite, n_L.new_full((), self._mu), 1.0))
            torch._foreach_add_(v, [torch.where(finite, g, 0) for g in gradients])

    def _after_step(self, *_: Any) -> None:
        self._step += 1
        self._factors = None

    def _joint_norm(self, tensors: list[Tensor], indices: Sequence[int]) -> Tensor:
        """Return ‖(t, …)‖₂ over the tensors of each module, in fp32 at least, shape (L,)."""
        if not tensors:
            return torch.zeros_like(self._g_bar_L)
        norms_P = torch.stack(torch._foreach_norm(tensors, 2, dtype=self._exact))
        squares_LK = self._g_bar_L.new_zeros(len(self._g_bar_L), self._widest)
        squares_LK.view(-1)[self._places(tuple(indices)).slot_P] = norms_P.square()
        return squares_LK.sum(1).sqrt()

    def _v(self, index: int) -> Tensor | None:
        if self._mu is not None:
            return self._own_v[index]
        return self._momentum(self._parameters[index])

    def _exp_avg(self, parameter: Tensor) -> Tensor | None:
        found: Tensor | None = self._optimizer.state.get(parameter, {}).get("exp_avg")
        return found

    def _rho_now(self) -> float:
        return self._rho(self._step) if callable(self._rho) else self._rho


class _Places(NamedTuple):
    """Where P of the parameters stand: index tensors for the device."""

    owner_P: Tensor  # the module of each
    slot_P: Tensor  # its place in a flat table (module, parameter of the module)
    owns_L: Tensor  # which modules own one of them


def _places(sizes: Sequence[int], device: torch.device, indices: tuple[int, ...]) -> _Places:
    """Look up the parameters at `indices` among modules of the given sizes."""
    table = [(module, place) for module, size in enumerate(sizes) for place in range(size)]
    chosen = _at(table, indices)
    owners = [module for module, _ in chosen]
    slots = [module * max(sizes) + place for module, place in chosen]
    owns = [module in set(owners) for module in range(len(sizes))]
    return _Places(*(torch.tensor(found, device=device) for found in (owners, slots, owns)))


def _moved(
    parameters: list[Tensor],
    momenta: list[Tensor],
    factors: list[Tensor],
    *,
    exact: torch.dtype,
) -> list[Tensor]:
    """Return p + factor · v, computed in `exact` and rounded once to the type of p."""
    if all(tensor.dtype == exact for tensor in (*parameters, *momenta)):
        return list(torch._foreach_addcmul(parameters, momenta, factors))
    return [
        p.to(exact).addcmul(v.to(exact), factor).to(p.dtype)
        for p, v, factor in zip(parameters, momenta, factors, strict=True)
    ]


def _exact_type(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return fp32, or fp64 where a parameter has it."""
    exact = torch.float32
    for tensor in tensors:
        exact = torch.promote_types(exact, tensor.dtype)
    return exact


def _at(items: Sequence[T], indices: Sequence[int]) -> list[T]:
    return [items[index] for index in indices]


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
