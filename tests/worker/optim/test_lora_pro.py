"""LoRA-Pro's step is the nearest to the full gradient's that low-rank factors can make."""

import torch

from worker.optim import lora_pro
from worker.optim.lora_ga import gradient_factors

M, N, R, SCALE = 12, 9, 3, 2.0


def problem(*, zero_b: bool = False) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(3)
    A, B, G = torch.randn(R, N), torch.randn(M, R), torch.randn(M, N)
    B = torch.zeros_like(B) if zero_b else B
    A, B, G = A.double(), B.double(), G.double()
    return A, B, G, SCALE * B.T @ G, SCALE * G @ A.T


def step(A: torch.Tensor, B: torch.Tensor, g_A: torch.Tensor, g_B: torch.Tensor) -> torch.Tensor:
    """The first-order change of s·BA."""
    return SCALE * (B @ g_A + g_B @ A)


def test_the_step_is_the_projection_of_the_full_gradient():
    A, B, G, grad_A, grad_B = problem()
    onto_B = B @ torch.linalg.pinv(B)
    onto_A = torch.linalg.pinv(A) @ A
    nearest = onto_B @ G + (torch.eye(M) - onto_B) @ G @ onto_A

    g_A, g_B = lora_pro.projected(A, B, grad_A, grad_B, scale=SCALE)

    assert torch.allclose(step(A, B, g_A, g_B), nearest, atol=1e-6)


def test_no_other_pair_comes_nearer():
    A, B, G, grad_A, grad_B = problem()
    g_A, g_B = lora_pro.projected(A, B, grad_A, grad_B, scale=SCALE)
    distance = (step(A, B, g_A, g_B) - G).norm()

    for seed in range(20):
        torch.manual_seed(seed)
        near = g_A + 0.1 * torch.randn_like(g_A), g_B + 0.1 * torch.randn_like(g_B)

        assert (step(A, B, *near) - G).norm() > distance


def test_x_solves_the_sylvester_equation():
    A, B, _, grad_A, grad_B = problem()

    g_A, _ = lora_pro.projected(A, B, grad_A, grad_B, scale=SCALE)

    inverse = torch.linalg.inv(B.T @ B)
    X = (g_A - inverse @ grad_A / SCALE**2) @ torch.linalg.pinv(A)
    left = B.T @ B @ X + X @ A @ A.T
    assert torch.allclose(left, -inverse @ grad_A @ A.T / SCALE**2, atol=1e-6)


def test_the_first_step_is_finite_where_b_is_zero():
    A, B, G, grad_A, grad_B = problem(zero_b=True)

    g_A, g_B = lora_pro.projected(A, B, grad_A, grad_B, scale=SCALE)

    onto_A = torch.linalg.pinv(A) @ A
    assert not g_A.any()
    assert torch.allclose(step(A, B, g_A, g_B), G @ onto_A, atol=1e-5)


def test_the_optimizer_steps_with_the_projected_gradients():
    A, B, _, grad_A, grad_B = problem()
    expected = lora_pro.projected(A, B, grad_A, grad_B, scale=SCALE)
    factors = [torch.nn.Parameter(A.clone()), torch.nn.Parameter(B.clone())]
    factors[0].grad, factors[1].grad = grad_A.clone(), grad_B.clone()
    optimizer = torch.optim.SGD(factors, lr=1.0)
    lora_pro.follow(optimizer, [(factors[0], factors[1])], [SCALE])

    optimizer.step()

    assert torch.allclose(factors[0], A - expected[0]) and torch.allclose(
        factors[1], B - expected[1]
    )


def test_lora_ga_starts_along_the_gradient():
    torch.manual_seed(0)
    U, _ = torch.linalg.qr(torch.randn(M, 2 * R))
    V, _ = torch.linalg.qr(torch.randn(N, 2 * R))
    gradient = U @ torch.diag(torch.arange(2.0 * R, 0, -1)) @ V.T

    A, B = gradient_factors(gradient, r=R, seed=1, gamma=16)

    scale = M**0.25 / 4
    assert torch.allclose((A @ V[:, :R]).abs(), scale * torch.eye(R), atol=1e-4)
    assert torch.allclose((B.T @ U[:, R:]).abs(), scale * torch.eye(R), atol=1e-4)


def test_lora_ga_is_decided_by_its_seed():
    gradient = torch.randn(M, N)

    first, again = (gradient_factors(gradient, r=R, seed=5) for _ in range(2))

    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
