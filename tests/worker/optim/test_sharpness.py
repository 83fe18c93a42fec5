"""Sharpness says how steep the valley is, the same way for every method."""

import math

import pytest
import torch

from worker.optim.sharpness import sharpness

CURVATURE = torch.tensor([50.0, 5.0, 1.0, 0.5, 0.1, 0.1])
MINIMUM = torch.tensor([1.0, -2.0, 0.5, 1.0, 2.0, -1.0])
RHO = 0.1


def valley(at: torch.Tensor) -> tuple[list[torch.nn.Parameter], object]:
    """A quadratic bowl over two parameters of other shapes."""
    parameters = [
        torch.nn.Parameter(at[:2].clone()),
        torch.nn.Parameter(at[2:].clone().reshape(2, 2)),
    ]

    def loss() -> torch.Tensor:
        flat = torch.cat([parameter.flatten() for parameter in parameters])
        return 0.5 * (CURVATURE * (flat - MINIMUM) ** 2).sum()

    return parameters, loss


def test_the_worst_rise_at_a_minimum_is_the_largest_curvature():
    parameters, loss = valley(MINIMUM)

    found = sharpness(parameters, loss, rho=RHO, seed=1, ascent_steps=8)

    assert math.isclose(found.worst, 0.5 * 50 * (RHO * MINIMUM.norm()) ** 2, rel_tol=1e-3)


def test_the_mean_rise_at_a_minimum_is_the_mean_curvature():
    parameters, loss = valley(MINIMUM)

    found = sharpness(parameters, loss, rho=RHO, seed=1, directions=4000)

    expected = 0.5 * float(CURVATURE.mean()) * float(RHO * MINIMUM.norm()) ** 2
    assert math.isclose(found.mean, expected, rel_tol=0.1)


def test_the_worst_is_never_below_the_mean():
    parameters, loss = valley(MINIMUM + 0.3)

    found = sharpness(parameters, loss, rho=RHO, seed=2)

    assert found.worst >= found.mean


def test_the_same_seed_measures_the_same():
    first, again = (sharpness(*valley(MINIMUM + 0.3), rho=RHO, seed=3) for _ in range(2))

    assert first == again != sharpness(*valley(MINIMUM + 0.3), rho=RHO, seed=4)


def test_scaling_the_weights_changes_nothing():
    """A loss that only sees w/k is as sharp around k·w: methods of other scales compare."""
    parameters, _ = valley(10 * MINIMUM)

    def loss() -> torch.Tensor:
        flat = torch.cat([parameter.flatten() for parameter in parameters]) / 10
        return 0.5 * (CURVATURE * (flat - MINIMUM) ** 2).sum()

    scaled = sharpness(parameters, loss, rho=RHO, seed=1)

    plain = sharpness(*valley(MINIMUM), rho=RHO, seed=1)
    assert math.isclose(scaled.worst, plain.worst, rel_tol=1e-4)
    assert math.isclose(scaled.mean, plain.mean, rel_tol=1e-4)


def test_weights_and_gradients_are_left_as_they_were():
    parameters, loss = valley(MINIMUM + 0.3)
    loss().backward()
    before = [(p.detach().clone(), p.grad.clone()) for p in parameters]
    state = torch.get_rng_state()

    sharpness(parameters, loss, rho=RHO, seed=1)

    for parameter, (weight, gradient) in zip(parameters, before, strict=True):
        assert torch.equal(parameter, weight) and torch.equal(parameter.grad, gradient)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_exception_leaves_the_weights_as_they_were():
    parameters, loss = valley(MINIMUM)
    calls = iter(range(3))

    def failing() -> torch.Tensor:
        if next(calls) == 2:
            raise RuntimeError("out of memory")
        return loss()

    with pytest.raises(RuntimeError):
        sharpness(parameters, failing, rho=RHO, seed=1)

    assert torch.equal(torch.cat([p.flatten() for p in parameters]), MINIMUM)
