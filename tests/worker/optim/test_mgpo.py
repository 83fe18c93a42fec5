"""What the perturbation promises, on a small network in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.worker.optim.problems import (
    BETAS,
    MODES,
    Reference,
    Waits,
    copied,
    epsilon,
    factors,
    joint,
    loss_of,
    make,
    net,
    same,
    step,
    train,
)
from worker.optim.groups import lora_modules
from worker.optim.mgpo import MGPO, adaptive_scale


@pytest.mark.parametrize(("norm", "apn", "mu"), MODES)
def test_every_mode_agrees_with_a_float64_numpy_reference(norm: str, apn: str, mu: float | None):
    model = net()
    mgpo, optimizer = make(model, norm=norm, apn=apn, mu=mu)
    reference = Reference(rho=0.05, beta=0.9, norm=norm, apn=apn, mu=mu)

    for _ in range(7):
        step(model, mgpo, optimizer)
        reference.step()

        moved = [e for module in epsilon(model, mgpo) for e in module]
        for e, p, eps, w in zip(moved, factors(model), reference.eps, reference.w, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), w, atol=1e-12, rtol=0)
            np.testing.assert_allclose(e.numpy(), eps, atol=1e-12, rtol=0)


def test_rho_zero_is_the_plain_optimizer_bit_for_bit():
    plain, perturbed = net(), net()
    optimizer = torch.optim.AdamW(factors(plain), lr=1e-2, betas=BETAS, weight_decay=0.0)
    for _ in range(5):
        step(plain, None, optimizer)

    train(perturbed, 5, rho=0.0)

    assert same(factors(plain), factors(perturbed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_exact_bits_come_back_a_thousand_times(dtype: torch.dtype):
    model = net(dtype)
    mgpo, _ = train(model, 2)
    before = copied(factors(model))

    for _ in range(1000):
        with mgpo.perturbed():
            assert not same(factors(model), before)

    assert same(factors(model), before)


def test_an_exception_leaves_the_weights_clean():
    model = net()
    mgpo, _ = train(model, 2)
    before = copied(factors(model))

    with pytest.raises(KeyError), mgpo.perturbed():
        assert not same(factors(model), before)
        raise KeyError

    assert same(factors(model), before)


def test_an_interrupt_while_the_weights_move_leaves_them_clean():
    model = net()
    mgpo, optimizer = train(model, 1)
    before = copied(factors(model))
    reads = 0

    def momentum(parameter: torch.Tensor) -> torch.Tensor:
        nonlocal reads
        reads += 1
        if reads > 8:  # once through for the norms, then in the middle of the move
            raise KeyboardInterrupt
        found: torch.Tensor = optimizer.state[parameter]["exp_avg"]
        return found

    mgpo._momentum = momentum
    with pytest.raises(KeyboardInterrupt), mgpo.perturbed():
        pass

    assert reads > 8 and same(factors(model), before)


def test_an_optimizer_that_steps_inside_finds_the_clean_weights():
    """DeepSpeed steps within the backward call: the result must be that of stepping after it."""
    outside, inside = net(), net()
    train(outside, 4)

    mgpo, optimizer = make(inside)
    for _ in range(4):
        optimizer.zero_grad()
        with mgpo.perturbed():
            loss_of(inside).backward()
            optimizer.step()

    assert same(factors(outside), factors(inside))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool):
    whole, recomputed = net(), net()
    train(whole, 4)

    mgpo, optimizer = make(recomputed)
    for _ in range(4):
        step(recomputed, mgpo, optimizer, reentrant=reentrant)

    assert same(factors(whole), factors(recomputed))


def test_a_step_takes_one_forward():
    model = net()
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    model.register_forward_pre_hook(count)
    train(model, 5)

    assert forwards == 5


@pytest.mark.parametrize("apn", ["relative", "paper", "off"])
def test_each_module_moves_by_rho_times_its_scale_against_its_momentum(apn: str):
    model = net()
    mgpo, optimizer = train(model, 3, apn=apn)
    scales = adaptive_scale(mgpo.state_dict()["g_bar"], apn=apn, cap=4.0)  # type: ignore[arg-type]

    modules = lora_modules(model.named_parameters()).values()
    for parameters, eps, scale in zip(modules, epsilon(model, mgpo), scales, strict=True):
        v = [optimizer.state[p]["exp_avg"] for p in parameters]
        assert joint(eps) == pytest.approx(0.05 * float(scale), rel=1e-9)
        assert sum((e * m).sum() for e, m in zip(eps, v, strict=True)) < 0


@pytest.mark.parametrize("norm", ["module", "global"])
@pytest.mark.parametrize(("apn", "changes"), [("relative", False), ("off", False), ("paper", True)])
def test_the_loss_scale_matters_to_the_papers_form_only(norm: str, apn: str, changes: bool):
    moved = []
    for scale in (1.0, 7.0):
        model = net()
        mgpo, optimizer = make(model, norm=norm, apn=apn, apn_cap=1e9)
        step(model, mgpo, optimizer, scale)
        moved.append([joint(eps) for eps in epsilon(model, mgpo)])

    assert (moved[0] != pytest.approx(moved[1], rel=1e-6)) is changes


def test_the_cap_bounds_the_papers_form():
    model = net()
    mgpo, optimizer = make(model, apn="paper", apn_cap=1.5)
    step(model, mgpo, optimizer, 1e-4)

    assert [joint(eps) for eps in epsilon(model, mgpo)] == pytest.approx([0.075] * 3, rel=1e-6)


def test_an_own_momentum_with_mu_beta1_points_where_exp_avg_points():
    directions = []
    for mu in (None, BETAS[0]):
        model = net()
        mgpo, optimizer = make(model, mu=mu)
        for _ in range(4):  # the same gradients for both: no perturbation while they are taken
            step(model, None, optimizer)
        directions.append(epsilon(model, mgpo))

    for a, b in zip(directions[0], directions[1], strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=1e-12, rtol=0)


def test_accumulating_micro_batches_equals_one_batch():
    ends = []
    for pieces in (1, 4):
        model = net()
        mgpo, optimizer = make(model)
        for _ in range(4):
            optimizer.zero_grad()
            for _ in range(pieces):
                with mgpo.perturbed():
                    loss_of(model, 1 / pieces).backward()
            optimizer.step()
        ends.append(copied(factors(model)))

    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mu", [None, 0.8])
@pytest.mark.parametrize("norm", ["module", "global"])
def test_saved_and_loaded_goes_on_bit_for_bit(norm: str, mu: float | None):
    straight = net()
    train(straight, 8, norm=norm, mu=mu)
    first = net()
    mgpo, optimizer = train(first, 4, norm=norm, mu=mu)

    second = net()
    second.load_state_dict(first.state_dict())
    resumed, fresh_optimizer = make(second, norm=norm, mu=mu)
    fresh_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(mgpo.state_dict())
    for _ in range(4):
        step(second, resumed, fresh_optimizer)

    assert same(factors(straight), factors(second))


def test_a_step_that_is_skipped_leaves_no_drift():
    model = net()
    mgpo, _ = train(model, 3)
    before, state = copied(factors(model)), mgpo.state_dict()

    with mgpo.perturbed():  # an overflow: backward runs, the optimizer's step does not
        loss_of(model).backward()

    assert same(factors(model), before)
    assert all(torch.equal(mgpo.state_dict()[key], state[key]) for key in state)


@pytest.mark.parametrize("worst", [math.inf, math.nan])
def test_a_gradient_that_overflows_enters_neither_norms_nor_momentum(worst: float):
    model = net()
    mgpo, optimizer = train(model, 3, mu=0.8)
    before, state = copied(factors(model)), mgpo.state_dict()

    loss_of(model).backward()
    factors(model)[0].grad[0, 0] = worst  # type: ignore[index]
    optimizer.step()
    for p, clean in zip(factors(model), before, strict=True):
        p.data.copy_(clean)

    after = mgpo.state_dict()
    assert all(torch.equal(after[key], state[key]) for key in state if key != "step")
    assert all(torch.isfinite(e).all() for module in epsilon(model, mgpo) for e in module)


def test_nothing_moves_before_the_first_step_and_before_start_step():
    model = net()
    mgpo, optimizer = make(model, start_step=2)

    lengths = []
    for _ in range(4):
        lengths.append(joint(epsilon(model, mgpo)[0]))
        step(model, mgpo, optimizer)

    assert lengths[:2] == [0, 0] and min(lengths[2:]) > 0


def test_rho_may_follow_a_schedule():
    model = net()
    mgpo, optimizer = make(model, rho=lambda done: 0.01 * (4 - done), apn="off")

    lengths = []
    for _ in range(4):
        step(model, mgpo, optimizer)
        lengths.append(joint(epsilon(model, mgpo)[0]))

    assert lengths == pytest.approx([0.03, 0.02, 0.01, 0], rel=1e-9)
    assert mgpo.metrics()["perturbation_norm_max"] == 0


@pytest.mark.parametrize("mu", [None, 0.8])
def test_a_low_precision_step_is_rounded_once(mu: float | None):
    """ε is computed in fp32 and p + ε is rounded once: ε is never rounded by itself."""
    model = net(torch.bfloat16)
    mgpo, optimizer = train(model, 3, mu=mu, apn="off")
    p = factors(model)
    if mu is None:
        v = [optimizer.state[x]["exp_avg"].float() for x in p]
    else:
        v = [mgpo.state_dict()[f"v.{index}"] for index in range(len(p))]
    length = torch.stack([x.square().sum() for x in v[:2]]).sum().sqrt()
    expected = (p[0].detach().float() - 0.05 * v[0] / length).bfloat16()

    with mgpo.perturbed():
        assert torch.equal(p[0], expected)


@pytest.mark.parametrize(("mu", "copies"), [(None, 1), (0.8, 2)])
def test_exactly_one_copy_of_the_factors_is_kept_and_one_of_an_own_momentum(
    mu: float | None, copies: int
):
    model = net(torch.float32)
    mgpo, _ = train(model, 2, mu=mu)

    with mgpo.perturbed():
        held = [x for value in vars(mgpo).values() if isinstance(value, list) for x in value]

    ours = {id(p) for p in factors(model)}
    matrices = [x for x in held if torch.is_tensor(x) and x.dim() == 2 and id(x) not in ours]
    assert sum(x.nbytes for x in matrices) == copies * sum(p.nbytes for p in factors(model))
    assert not mgpo._clean, "at rest the clean weights are the only ones"


@pytest.mark.parametrize(("norm", "apn", "mu"), MODES)
def test_a_step_never_waits_for_the_device(norm: str, apn: str, mu: float | None):
    model = net(torch.float32)
    mgpo, _ = train(model, 3, norm=norm, apn=apn, mu=mu)
    loss_of(model).backward()

    with Waits() as waits:
        mgpo._before_step()
        mgpo._after_step()
        with mgpo.perturbed():
            pass

    assert waits.seen == []


def test_the_watch_for_waiting_sees_what_waits():
    with Waits() as waits:
        torch.ones(2).sum().item()
        torch.ones(2)[[1]]

    assert len(waits.seen) == 2


@pytest.mark.parametrize("apn", ["relative", "paper", "off"])
def test_a_dead_module_and_one_without_gradient_stay_where_they_are(apn: str):
    model, unused = net(), nn.Parameter(torch.ones(2, 2).double())
    optimizer = torch.optim.AdamW([*factors(model), unused], lr=1e-2)
    modules = {"dead": factors(model), "unused": [unused]}
    mgpo = MGPO(modules, optimizer, rho=0.05, beta=0.9, apn=apn)  # type: ignore[arg-type]

    step(model, mgpo, optimizer, 0.0)
    before = copied([*factors(model), unused])

    with mgpo.perturbed():
        assert same([*factors(model), unused], before)
    assert all(math.isfinite(value) for value in mgpo.metrics().values())


def test_the_metrics_tell_length_scale_and_clamping():
    model = net()
    mgpo, _ = train(model, 3)
    longest = max(joint(eps) for eps in epsilon(model, mgpo))
    scales = adaptive_scale(mgpo.state_dict()["g_bar"], apn="relative", cap=4.0)

    metrics = mgpo.metrics()

    assert metrics["perturbation_norm_max"] == pytest.approx(longest)
    assert metrics["perturbation_scale_mean"] == pytest.approx(float(scales.mean()))
    assert metrics["perturbation_clamped_share"] == pytest.approx(
        float(((scales == 0.25) | (scales == 4)).double().mean())
    )


@pytest.mark.parametrize(
    "options", [{"rho": -1}, {"beta": 1}, {"mu": 1.5}, {"apn_cap": 0}], ids=str
)
def test_values_out_of_range_are_refused(options: dict[str, float]):
    with pytest.raises(ValueError, match=r"rho|beta|apn_cap"):
        make(net(), **options)


def test_a_state_of_another_model_is_refused():
    smaller = net()
    smaller.layers[0].requires_grad_(False)

    with pytest.raises(ValueError, match="3 modules, not 2"):
        make(smaller)[0].load_state_dict(make(net())[0].state_dict())


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


def test_the_problem_is_one_that_tells_modules_apart():
    """Norms differ by module and the larger ones are clamped, or the tests above prove less."""
    model = net()
    mgpo, _ = train(model, 2)
    g_bar = mgpo.state_dict()["g_bar"]

    assert float(g_bar.max() / g_bar.min()) > 2
