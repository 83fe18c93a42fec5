"""What the perturbation promises, on small problems in float64."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from worker.optim.groups import lora_modules
from worker.optim.mgpo import EPS, MGPO, adaptive_scale

MODES = list(itertools.product(["module", "global"], ["relative", "paper", "off"], [None, 0.8]))
BETAS = (0.9, 0.999)


def factors(count: int = 3, dtype: torch.dtype = torch.float64) -> dict[str, list[nn.Parameter]]:
    torch.manual_seed(0)
    return {
        f"layer{index}": [
            nn.Parameter(torch.randn(2, 5, dtype=dtype) * (index + 1)),
            nn.Parameter(torch.randn(4, 2, dtype=dtype)),
        ]
        for index in range(count)
    }


def flat(modules: dict[str, list[nn.Parameter]]) -> list[nn.Parameter]:
    return [parameter for parameters in modules.values() for parameter in parameters]


def loss_of(modules: dict[str, list[nn.Parameter]], scale: float = 1.0) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for index, (a, b) in enumerate(modules.values()):
        total = total + ((b @ a - index) ** 2).mean() * (index + 1)
    return total * scale


def make(modules: dict[str, list[nn.Parameter]], **options: Any) -> tuple[MGPO, torch.optim.AdamW]:
    optimizer = torch.optim.AdamW(flat(modules), lr=1e-2, betas=BETAS, weight_decay=0.0)
    return MGPO(modules, optimizer, **({"rho": 0.05, "beta": 0.9} | options)), optimizer


def step(
    modules: dict[str, list[nn.Parameter]],
    mgpo: MGPO | None,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
) -> None:
    optimizer.zero_grad()
    if mgpo is None:
        loss().backward()
    else:
        with mgpo.perturbed():
            loss().backward()
    optimizer.step()


def train(modules: dict[str, list[nn.Parameter]], steps: int, **options: Any) -> MGPO:
    mgpo, optimizer = make(modules, **options)
    for _ in range(steps):
        step(modules, mgpo, optimizer, lambda: loss_of(modules))
    return mgpo


def epsilon(modules: dict[str, list[nn.Parameter]], mgpo: MGPO) -> list[list[Tensor]]:
    clean = [[p.detach().clone() for p in parameters] for parameters in modules.values()]
    with mgpo.perturbed():
        return [
            [p.detach() - c for p, c in zip(parameters, before, strict=True)]
            for parameters, before in zip(modules.values(), clean, strict=True)
        ]


def joint(tensors: Sequence[Tensor]) -> float:
    return float(sum(tensor.square().sum() for tensor in tensors) ** 0.5)


def reference(steps: int, *, rho: float, beta: float, norm: str, apn: str, mu: float | None) -> Any:
    """ALGORITHM's step by step in NumPy, gradients by torch, AdamW by hand."""
    weights = [p.detach().numpy().copy() for p in flat(factors())]
    m = [np.zeros_like(w) for w in weights]
    s = [np.zeros_like(w) for w in weights]
    own = [np.zeros_like(w) for w in weights]
    eps = [np.zeros_like(w) for w in weights]
    g_bar: list[float] | None = None
    for t in range(1, steps + 1):
        modules = factors()
        for p, w, e in zip(flat(modules), weights, eps, strict=True):
            p.data = torch.from_numpy(w + e)
        loss_of(modules).backward()
        g = [p.grad.numpy() for p in flat(modules) if p.grad is not None]
        n = [float(np.sqrt((g[2 * i] ** 2).sum() + (g[2 * i + 1] ** 2).sum())) for i in range(3)]
        g_bar = (
            n
            if g_bar is None
            else [beta * b + (1 - beta) * x for b, x in zip(g_bar, n, strict=True)]
        )
        for i in range(6):
            m[i] = BETAS[0] * m[i] + (1 - BETAS[0]) * g[i]
            s[i] = BETAS[1] * s[i] + (1 - BETAS[1]) * g[i] ** 2
            own[i] = (mu or 0) * own[i] + g[i]
            denominator = np.sqrt(s[i]) / np.sqrt(1 - BETAS[1] ** t) + 1e-8
            weights[i] = weights[i] - 1e-2 / (1 - BETAS[0] ** t) * m[i] / denominator
        v = m if mu is None else own
        norms = [
            float(np.sqrt((v[2 * i] ** 2).sum() + (v[2 * i + 1] ** 2).sum())) for i in range(3)
        ]
        for i in range(3):
            scale = {
                "off": 1.0,
                "relative": min(max(np.mean(g_bar) / g_bar[i], 0.25), 4.0),
                "paper": min(1 / g_bar[i], 4.0),
            }[apn]
            length = norms[i] if norm == "module" else float(np.linalg.norm(norms))
            for j in (2 * i, 2 * i + 1):
                eps[j] = -rho * scale * v[j] / (length + EPS)
    return weights, eps


@pytest.mark.parametrize(("norm", "apn", "mu"), MODES)
def test_every_mode_agrees_with_the_reference(norm: str, apn: str, mu: float | None):
    modules = factors()
    mgpo = train(modules, 7, norm=norm, apn=apn, mu=mu)

    weights, eps = reference(7, rho=0.05, beta=0.9, norm=norm, apn=apn, mu=mu)

    for p, expected in zip(flat(modules), weights, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), expected, atol=1e-12, rtol=0)
    moved = [e for module in epsilon(modules, mgpo) for e in module]
    for e, expected in zip(moved, eps, strict=True):
        np.testing.assert_allclose(e.numpy(), expected, atol=1e-12, rtol=0)


def test_rho_zero_is_the_plain_optimizer_bit_for_bit():
    plain, perturbed = factors(), factors()
    optimizer = torch.optim.AdamW(flat(plain), lr=1e-2, betas=BETAS, weight_decay=0.0)
    for _ in range(5):
        step(plain, None, optimizer, lambda: loss_of(plain))

    train(perturbed, 5, rho=0.0)

    for a, b in zip(flat(plain), flat(perturbed), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_exact_bits_come_back_a_thousand_times(dtype: torch.dtype):
    modules = factors()
    mgpo = train(modules, 2)
    for p in flat(modules):
        p.data = p.data.to(dtype)
    before = [p.detach().clone() for p in flat(modules)]

    for _ in range(1000):
        with mgpo.perturbed():
            pass

    assert all(torch.equal(p, b) for p, b in zip(flat(modules), before, strict=True))


def test_an_exception_leaves_the_weights_clean():
    modules = factors()
    mgpo = train(modules, 2)
    before = [p.detach().clone() for p in flat(modules)]

    with pytest.raises(KeyError), mgpo.perturbed():
        assert not torch.equal(flat(modules)[0], before[0])
        raise KeyError

    assert all(torch.equal(p, b) for p, b in zip(flat(modules), before, strict=True))


@pytest.mark.parametrize("apn", ["relative", "paper", "off"])
def test_each_module_moves_by_rho_times_its_scale_against_its_momentum(apn: str):
    modules = factors()
    mgpo, optimizer = make(modules, apn=apn)
    for _ in range(3):
        step(modules, mgpo, optimizer, lambda: loss_of(modules))
    scales = adaptive_scale(mgpo.state_dict()["g_bar"], apn=apn, cap=4.0)  # type: ignore[arg-type]

    for parameters, eps, scale in zip(
        modules.values(), epsilon(modules, mgpo), scales, strict=True
    ):
        v = [optimizer.state[p]["exp_avg"] for p in parameters]
        assert joint(eps) == pytest.approx(0.05 * float(scale), rel=1e-9)
        assert sum((e * m).sum() for e, m in zip(eps, v, strict=True)) < 0


@pytest.mark.parametrize(("apn", "changes"), [("relative", False), ("off", False), ("paper", True)])
def test_the_loss_scale_matters_to_the_papers_form_only(apn: str, changes: bool):
    moved = []
    for scale in (1.0, 7.0):
        modules = factors()
        mgpo, optimizer = make(modules, apn=apn, apn_cap=1e9)
        step(modules, mgpo, optimizer, lambda s=scale, m=modules: loss_of(m, s))  # type: ignore[misc]
        moved.append([joint(eps) for eps in epsilon(modules, mgpo)])

    assert (moved[0] != pytest.approx(moved[1], rel=1e-6)) is changes


def test_an_own_momentum_with_mu_beta1_points_where_exp_avg_points():
    directions = []
    for mu in (None, BETAS[0]):
        modules = factors()
        mgpo, optimizer = make(modules, mu=mu)
        for _ in range(4):  # the same gradients for both: no perturbation while they are taken
            step(modules, None, optimizer, lambda m=modules: loss_of(m))  # type: ignore[misc]
        directions.append(epsilon(modules, mgpo))

    for a, b in zip(directions[0], directions[1], strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=1e-12, rtol=0)


def test_micro_batches_equal_one_batch():
    ends = []
    for pieces in (1, 4):
        modules = factors()
        mgpo, optimizer = make(modules)
        for _ in range(4):
            optimizer.zero_grad()
            for _ in range(pieces):
                with mgpo.perturbed():
                    loss_of(modules, 1 / pieces).backward()
            optimizer.step()
        ends.append([p.detach().clone() for p in flat(modules)])

    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_saved_and_loaded_goes_on_bit_for_bit():
    straight = factors()
    train(straight, 8, mu=0.8)
    first = factors()
    mgpo, optimizer = make(first, mu=0.8)
    for _ in range(4):
        step(first, mgpo, optimizer, lambda: loss_of(first))
    saved, saved_optimizer = mgpo.state_dict(), optimizer.state_dict()

    second = factors()
    for p, q in zip(flat(second), flat(first), strict=True):
        p.data.copy_(q.data)
    resumed, fresh_optimizer = make(second, mu=0.8)
    fresh_optimizer.load_state_dict(saved_optimizer)
    resumed.load_state_dict(saved)
    for _ in range(4):
        step(second, resumed, fresh_optimizer, lambda: loss_of(second))

    for a, b in zip(flat(straight), flat(second), strict=True):
        assert torch.equal(a, b)


def test_a_skipped_step_leaves_no_drift():
    modules = factors()
    mgpo = train(modules, 3)
    before = [p.detach().clone() for p in flat(modules)]
    state = mgpo.state_dict()

    with mgpo.perturbed():  # an overflow: backward runs, the optimizer's step does not
        loss_of(modules).backward()

    assert all(torch.equal(p, b) for p, b in zip(flat(modules), before, strict=True))
    assert all(torch.equal(mgpo.state_dict()[key], state[key]) for key in state)


def test_nothing_moves_before_the_first_step_and_before_start_step():
    modules = factors()
    mgpo, optimizer = make(modules, start_step=2)

    lengths = []
    for _ in range(4):
        lengths.append(joint(epsilon(modules, mgpo)[0]))
        step(modules, mgpo, optimizer, lambda: loss_of(modules))

    assert lengths[:2] == [0, 0] and min(lengths[2:]) > 0


def test_rho_may_follow_a_schedule():
    modules = factors()
    mgpo = train(modules, 2, rho=lambda step: 0.01 * step, apn="off")

    assert joint(epsilon(modules, mgpo)[0]) == pytest.approx(0.02, rel=1e-9)


def test_a_dead_module_and_one_without_gradient_stay_finite():
    modules = factors(2)
    frozen = modules["layer1"]
    mgpo, optimizer = make(modules)
    a, b = modules["layer0"]

    step(modules, mgpo, optimizer, lambda: (b @ a).sum() * 0)

    assert all(torch.isfinite(e).all() for module in epsilon(modules, mgpo) for e in module)
    assert joint(epsilon(modules, mgpo)[1]) == 0 and frozen[0].grad is None


def test_the_metrics_tell_length_scale_and_clamping():
    modules = factors()
    mgpo = train(modules, 3)
    epsilon(modules, mgpo)

    metrics = mgpo.metrics()

    longest = max(joint(eps) for eps in epsilon(modules, mgpo))
    assert metrics["perturbation_norm_max"] == pytest.approx(longest)
    assert 0.25 <= metrics["perturbation_scale_mean"] <= 4
    assert 0 <= metrics["perturbation_clamped_share"] <= 1


@pytest.mark.parametrize(
    "options", [{"rho": -1}, {"beta": 1}, {"mu": 1.5}, {"apn_cap": 0}], ids=str
)
def test_values_out_of_range_are_refused(options: dict[str, float]):
    with pytest.raises(ValueError, match=r"rho|beta|apn_cap"):
        make(factors(), **options)


def test_a_state_of_another_model_is_refused():
    with pytest.raises(ValueError, match="3 modules, not 2"):
        make(factors(2))[0].load_state_dict(make(factors(3))[0].state_dict())


def test_only_trainable_lora_factors_are_grouped():
    def parameter(*, trains: bool = True) -> nn.Parameter:
        return nn.Parameter(torch.zeros(1), requires_grad=trains)

    named = {
        "q.lora_A.default.weight": parameter(),
        "q.lora_B.default.weight": parameter(),
        "q.lora_magnitude_vector.default.weight": parameter(),
        "k.lora_A.default.weight": parameter(trains=False),
        "k.base_layer.weight": parameter(),
        "lm_head.modules_to_save.default.weight": parameter(),
    }

    groups = lora_modules(named.items())

    assert list(groups) == ["q"] and len(groups["q"]) == 2
