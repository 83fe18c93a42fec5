"""A small network with LoRA factors in torch, and the whole method by hand in float64 NumPy."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from worker.optim.groups import lora_modules
from worker.optim.mgpo import MGPO

MODES = list(itertools.product(["module", "global"], ["relative", "paper", "off"], [None, 0.8]))
BETAS = (0.9, 0.999)
LEARNING_RATE = 1e-2
WIDTHS = (5, 4, 6, 3)
SCALING = 2.0


class Waits(TorchDispatchMode):
    """Collects the operations that make the host wait for a device, or send it something."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        names = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "unique")
        if any(name in func.name() for name in names) or (
            "device" in kwargs and "copy" in func.name()
        ):
            self.seen.append(func.name())
        return func(*args, **kwargs)


class LoraLinear(nn.Module):
    """y = x (W + s B A)ᵀ with a frozen W, named as PEFT names its parts."""

    def __init__(self, n_in: int, n_out: int, *, r: int = 2) -> None:
        super().__init__()
        self.base_layer = nn.Linear(n_in, n_out, bias=False)
        self.lora_A = nn.Linear(n_in, r, bias=False)
        self.lora_B = nn.Linear(r, n_out, bias=False)
        self.base_layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x) + SCALING * self.lora_B(self.lora_A(x))
        return y


class Net(nn.Module):
    """Three adapted layers with tanh between; the last one starts with a far larger B."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LoraLinear(*pair) for pair in itertools.pairwise(WIDTHS))

    def forward(self, x: Tensor, *, reentrant: bool | None = None) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x) if reentrant is None else checkpoint(layer, x, use_reentrant=reentrant)
            x = torch.tanh(x) if index < len(self.layers) - 1 else x
        return x


def net(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(0)
    made = Net().double()
    with torch.no_grad():
        made.layers[-1].lora_B.weight.mul_(10)
    return made.to(dtype)


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(8, WIDTHS[0], generator=draw, dtype=torch.float64)
    y = torch.randn(8, WIDTHS[-1], generator=draw, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def loss_of(model: Net, scale: float = 1.0, *, reentrant: bool | None = None) -> Tensor:
    x, y = data(next(model.parameters()).dtype)
    if reentrant:
        x.requires_grad_()  # what a reentrant checkpoint needs to reach the weights
    return nn.functional.mse_loss(model(x, reentrant=reentrant), y) * scale


def factors(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def make(model: nn.Module, **options: Any) -> tuple[MGPO, torch.optim.AdamW]:
    optimizer = torch.optim.AdamW(factors(model), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0)
    modules = lora_modules(model.named_parameters())
    return MGPO(modules, optimizer, **({"rho": 0.05, "beta": 0.9} | options)), optimizer


def step(
    model: Net,
    mgpo: MGPO | None,
    optimizer: torch.optim.Optimizer,
    scale: float = 1.0,
    *,
    reentrant: bool | None = None,
) -> None:
    optimizer.zero_grad()
    if mgpo is None:
        loss_of(model, scale, reentrant=reentrant).backward()
    else:
        with mgpo.perturbed():
            loss_of(model, scale, reentrant=reentrant).backward()
    optimizer.step()


def train(model: Net, steps: int, **options: Any) -> tuple[MGPO, torch.optim.AdamW]:
    mgpo, optimizer = make(model, **options)
    for _ in range(steps):
        step(model, mgpo, optimizer)
    return mgpo, optimizer


def copied(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def epsilon(model: nn.Module, mgpo: MGPO) -> list[list[Tensor]]:
    """What `mgpo` adds to each module's factors now."""
    modules = lora_modules(model.named_parameters()).values()
    clean = [copied(parameters) for parameters in modules]
    with mgpo.perturbed():
        return [
            [p.detach() - c for p, c in zip(parameters, before, strict=True)]
            for parameters, before in zip(modules, clean, strict=True)
        ]


def joint(tensors: Sequence[Tensor]) -> float:
    return float(sum(tensor.square().sum() for tensor in tensors) ** 0.5)


Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Reference:
    """The specification line by line: its own forward, backward, AdamW and perturbation."""

    rho: float
    beta: float
    norm: str
    apn: str
    mu: float | None
    t: int = 0
    g_bar: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        model = net()
        self.base = [layer.base_layer.weight.numpy().copy() for layer in model.layers]
        self.w = [p.detach().numpy().copy() for p in factors(model)]
        self.m, self.s, self.own, self.eps = ([np.zeros_like(w) for w in self.w] for _ in range(4))

    def gradients(self, w: list[Array]) -> list[Array]:
        """Backpropagate mean((f(x) − y)²) through tanh and W + s B A, by hand."""
        x, y = (tensor.numpy() for tensor in data())
        whole = [b + SCALING * w[2 * i + 1] @ w[2 * i] for i, b in enumerate(self.base)]
        inputs, h = [], x
        for i, weight in enumerate(whole):
            inputs.append(h)
            h = h @ weight.T
            h = np.tanh(h) if i < len(whole) - 1 else h
        g = 2 * (h - y) / y.size
        found: list[Array] = []
        for i in reversed(range(len(whole))):
            g_w = g.T @ inputs[i]
            found = [SCALING * w[2 * i + 1].T @ g_w, SCALING * g_w @ w[2 * i].T, *found]
            g = (g @ whole[i]) * (1 - inputs[i] ** 2)
        return found

    def step(self) -> None:
        self.t += 1
        g = self.gradients([w + e for w, e in zip(self.w, self.eps, strict=True)])
        n = self._lengths(g)
        self.g_bar = [
            self.beta * b + (1 - self.beta) * x for b, x in zip(self.g_bar or n, n, strict=True)
        ]
        for i in range(len(g)):
            self.m[i] = BETAS[0] * self.m[i] + (1 - BETAS[0]) * g[i]
            self.s[i] = BETAS[1] * self.s[i] + (1 - BETAS[1]) * g[i] ** 2
            self.own[i] = (self.mu or 0) * self.own[i] + g[i]
            root = np.sqrt(self.s[i] / (1 - BETAS[1] ** self.t)) + 1e-8
            self.w[i] = self.w[i] - LEARNING_RATE * self.m[i] / (1 - BETAS[0] ** self.t) / root
        self._perturb(self.m if self.mu is None else self.own)

    def _perturb(self, v: list[Array]) -> None:
        lengths = self._lengths(v)
        for i, length in enumerate(lengths):
            scale = {
                "off": 1.0,
                "relative": min(max(float(np.mean(self.g_bar)) / self.g_bar[i], 0.25), 4.0),
                "paper": min(1 / self.g_bar[i], 4.0),
            }[self.apn]
            n = length if self.norm == "module" else float(np.linalg.norm(lengths))
            for j in (2 * i, 2 * i + 1):
                self.eps[j] = -self.rho * scale * v[j] / (n + 1e-12)

    @staticmethod
    def _lengths(arrays: list[Array]) -> list[float]:
        pairs = zip(arrays[::2], arrays[1::2], strict=True)
        return [float(np.sqrt((a**2).sum() + (b**2).sum())) for a, b in pairs]
