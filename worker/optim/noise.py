"""Random noise on the merged weight W + s B A, regenerated wherever it is needed, never kept.

Two relatives of LoRA-MGPO that follow no momentum. The noise N of a layer has rows of their own
standard deviation; y = x (W + N)ᵀ + s B A x, and the gradient of x contains N, too. N comes from a
seed, chunk of rows by chunk of rows, in the forward, in the backward and in a recomputed forward;
the base weight is never changed, so that nothing drifts.

Shapes: O rows (outputs) and I columns (inputs) of a weight, R rows of a chunk.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 1 << 22  # of a weight's rows at once: 16 MiB in fp32
METRICS = ("perturbation_norm_max", "perturbation_noise_ratio")


@dataclass(frozen=True)
class NoisyLayer:
    """A frozen linear layer and the LoRA factors that adapt it: W + s B A."""

    name: str
    linear: nn.Linear
    a: Tensor
    b: Tensor
    scaling: float


def flat_row_std(norm_O: Tensor, *, rho: float, n_in: int, progress: float) -> Tensor:
    """Row std of Flat-LoRA: ½ (1 − cos(π t/T)) · ρ/√n_in · ‖(W + s B A)_i‖₂."""
    ramp = (1 - math.cos(math.pi * min(progress, 1.0))) / 2
    return norm_O * (ramp * rho / math.sqrt(n_in))


def ggpo_row_std(
    norm_O: Tensor, gradient_square_O: Tensor, *, sigma: float, beta: float, n_out: int
) -> Tensor:
    """Row std of LoRA-GGPO: (σ ‖W'_i‖₂ + β ‖∇_i‖₂²) / √n_out, W' = W + s B A.

    ∇ ≈ s (B g_A + g_B A), of the step before. Rebuilt from a public port of the method
    (arXiv 2502.14538), not from the paper's text.
    """
    return (sigma * norm_O + beta * gradient_square_O) / math.sqrt(n_out)


def merged_row_norms(layer: NoisyLayer) -> Tensor:
    """‖(W + s B A)_i‖₂ of each row, in fp32 at least, a chunk of rows at a time."""
    weight = layer.linear.weight
    exact = _exact_type(weight)
    a, b = layer.a.to(exact), layer.b.to(exact)
    return torch.cat(
        [
            torch.addmm(weight[rows].to(exact), b[rows], a, alpha=layer.scaling).norm(dim=1)
            for rows in _chunks(weight)
        ]
    )


def gradient_row_squares(layer: NoisyLayer) -> Tensor:
    """‖∇_i‖₂² of each row, ∇ ≈ s (B g_A + g_B A), a chunk of rows at a time."""
    assert layer.a.grad is not None and layer.b.grad is not None
    exact = _exact_type(layer.linear.weight)
    a, b = layer.a.to(exact), layer.b.to(exact)
    g_a, g_b = layer.a.grad.to(exact), layer.b.grad.to(exact)
    return layer.scaling**2 * torch.cat(
        [
            torch.addmm(g_b[rows] @ a, b[rows], g_a).square().sum(dim=1)
            for rows in _chunks(layer.linear.weight)
        ]
    )


def noise_seed(run_seed: int, name: str, step: int) -> int:
    """Return the generator's seed of one layer at one optimizer step."""
    digest = hashlib.blake2b(f"{run_seed}/{name}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def noisy_chunks(weight: Tensor, std_O: Tensor, seed: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield W + N, rows at a time: computed in fp32, rounded once to the type of W."""
    exact = _exact_type(weight)
    draw = torch.Generator(weight.device).manual_seed(seed)
    for rows in _chunks(weight):
        clean_RI = weight[rows].to(exact)
        noise_RI = torch.empty_like(clean_RI).normal_(generator=draw)
        yield rows, torch.addcmul(clean_RI, std_O[rows, None], noise_RI).to(weight.dtype)


class _NoisyLinear(torch.autograd.Function):
    """y = x (W + N)ᵀ for a frozen W; keeps W's reference, the row std and the seed, no N."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, std_O: Tensor, seed: int) -> Tensor:
        ctx.save_for_backward(weight, std_O)
        ctx.seed = seed
        y = x.new_empty(*x.shape[:-1], weight.shape[0])
        for rows, noisy_RI in noisy_chunks(weight, std_O, seed):
            y[..., rows] = x @ noisy_RI.to(x.dtype).T
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        weight, std_O = ctx.saved_tensors
        g_x = g.new_zeros(*g.shape[:-1], weight.shape[1], dtype=_exact_type(g))
        for rows, noisy_RI in noisy_chunks(weight, std_O, ctx.seed):
            g_x += g[..., rows] @ noisy_RI.to(g.dtype)
        return g_x.to(g.dtype), None, None, None


def noisy_linear(x: Tensor, weight: Tensor, std_O: Tensor, *, seed: int) -> Tensor:
    """Return x (W + N)ᵀ, N drawn from `seed` with rows of the given std; W must be frozen."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    y: Tensor = _NoisyLinear.apply(x, weight, std_O, seed)  # type: ignore[no-untyped-call]  # of torch
    return y


class WeightNoise:
    """Adds noise to the layers' weights inside `perturbed()` while they train.

    The noise changes with every optimizer step, and is the same in all forwards of one step. The
    layers' forward is replaced within `perturbed()`, and there it is the plain one in evaluation.

    Args:
        layers: what gets noise; their weights must be frozen.
        optimizer: its step is hooked: it counts, and for "ggpo" gradients are measured before it.
        kind: "random" is Flat-LoRA, "ggpo" LoRA-GGPO.
        rho: ρ of "random", σ of "ggpo".
        beta: β of "ggpo"; "random" has none.
        total_steps: T of Flat-LoRA's ramp.
        seed: of the run; the noise follows from it, the layer's name and the step.
        start_step: no noise until this many optimizer steps are done.

    Raises:
        ValueError: there is no layer, one of them trains, or a number is negative.
    """

    def __init__(
        self,
        layers: Sequence[NoisyLayer],
        optimizer: torch.optim.Optimizer,
        *,
        kind: Literal["random", "ggpo"],
        rho: float,
        beta: float,
        total_steps: int,
        seed: int,
        start_step: int = 0,
    ) -> None:
        _check(layers, rho=rho, beta=beta)
        self._layers = list(layers)
        self._kind, self._rho, self._beta = kind, rho, beta
        self._total_steps, self._seed, self._start_step = total_steps, seed, start_step
        self._step = 0
        self._inside = False
        self._std: list[Tensor] | None = None  # of each layer's rows; None: to be renewed
        self._gradient_squares = [
            layer.linear.weight.new_zeros(
                layer.linear.out_features, dtype=_exact_type(layer.linear.weight)
            )
            for layer in self._layers
        ]
        self._last_M: Tensor | None = None
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Let forwards see noisy weights; the weights themselves stay as they are."""
        assert not self._inside, "perturbed() does not nest"
        if self._std is None:
            self._std = self._renew()
        self._inside = True
        try:
            with self._stood_in() if self._std else nullcontext():
                yield
        finally:
            self._inside = False

    def metrics(self) -> dict[str, float]:
        """Return the expected max_l ‖N_l‖ and the mean of ‖N_l‖ / ‖W_l + s B A‖, of the last N.

        Waits for the device, once.
        """
        values = [0.0] * len(METRICS) if self._last_M is None else self._last_M.tolist()
        return dict(zip(METRICS, values, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the step, the seed and, for "ggpo", the last gradients' row statistics."""
        state = {"step": torch.tensor(self._step), "seed": torch.tensor(self._seed)}
        if self._kind == "ggpo":
            for index, square_O in enumerate(self._gradient_squares):
                state[f"gradient_square.{index}"] = square_O.clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: the state is of another kind or of other layers.
        """
        ours = {name: value.shape for name, value in self.state_dict().items()}
        if {name: value.shape for name, value in state.items()} != ours:
            raise ValueError(f'the state is not that of "{self._kind}" on these layers')
        self._step, self._seed = int(state["step"]), int(state["seed"])
        if self._kind == "ggpo":
            for index, square_O in enumerate(self._gradient_squares):
                square_O.copy_(state[f"gradient_square.{index}"])
        self._std = None

    @contextmanager
    def _stood_in(self) -> Iterator[None]:
        """Have the layers' forward add noise. Where there is none, nobody meets a replaced one."""
        linears = [layer.linear for layer in self._layers]
        own = [vars(linear).get("forward") for linear in linears]  # of the layer itself, if any
        for index, linear in enumerate(linears):
            setattr(linear, "forward", partial(self._forward, index, linear.forward))  # noqa: B010
        try:
            yield
        finally:
            for linear, forward in zip(linears, own, strict=True):
                del linear.forward
                if forward is not None:
                    setattr(linear, "forward", forward)  # noqa: B010

    def _forward(self, index: int, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Stand in for a layer's forward."""
        linear = self._layers[index].linear
        if not linear.training:
            return plain(x)
        assert self._std
        seed = noise_seed(self._seed, self._layers[index].name, self._step)
        y = noisy_linear(x, linear.weight, self._std[index], seed=seed)
        return y if linear.bias is None else y + linear.bias.to(y.dtype)

    @torch.no_grad()
    def _renew(self) -> list[Tensor]:
        """Return the std of each layer's rows; none at all where every one of them is 0."""
        self._last_M = None
        no_ramp_yet = self._kind == "random" and self._step == 0
        if self._step < self._start_step or no_ramp_yet or self._rho == self._beta == 0:
            return []
        norms = [merged_row_norms(layer) for layer in self._layers]
        stds = [self._row_std(index, norm_O) for index, norm_O in enumerate(norms)]
        columns = [math.sqrt(layer.linear.in_features) for layer in self._layers]
        noise_L = torch.stack(
            [std_O.norm() * root for std_O, root in zip(stds, columns, strict=True)]
        )
        weight_L = torch.stack([norm_O.norm() for norm_O in norms])
        self._last_M = torch.stack([noise_L.max(), (noise_L / weight_L).nan_to_num().mean()])
        return stds

    def _row_std(self, index: int, norm_O: Tensor) -> Tensor:
        linear = self._layers[index].linear
        if self._kind == "random":
            progress = self._step / self._total_steps
            return flat_row_std(norm_O, rho=self._rho, n_in=linear.in_features, progress=progress)
        return ggpo_row_std(
            norm_O,
            self._gradient_squares[index],
            sigma=self._rho,
            beta=self._beta,
            n_out=linear.out_features,
        )

    @torch.no_grad()
    def _before_step(self, *_: Any) -> None:
        """Measure the gradients for "ggpo"; one that is not finite (an overflow) is left out."""
        if self._kind != "ggpo":
            return
        for index, layer in enumerate(self._layers):
            if layer.a.grad is not None and layer.b.grad is not None:
                fresh_O = gradient_row_squares(layer)
                kept_O = self._gradient_squares[index]
                finite = fresh_O.isfinite().all()
                self._gradient_squares[index] = torch.where(finite, fresh_O, kept_O)

    def _after_step(self, *_: Any) -> None:
        self._step += 1
        self._std = None


def _chunks(weight: Tensor) -> Iterator[slice]:
    rows = max(1, CHUNK_ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], rows):
        yield slice(start, min(start + rows, weight.shape[0]))


def _exact_type(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _check(layers: Sequence[NoisyLayer], *, rho: float, beta: float) -> None:
    if not layers:
        raise ValueError("there is no linear layer to add noise to")
    for layer in layers:
        if layer.linear.weight.requires_grad:
            raise ValueError(f"{layer.name} trains its weight; noise is for frozen ones")
    if rho < 0 or beta < 0:
        raise ValueError(f"rho {rho} and beta {beta} are not negative")
