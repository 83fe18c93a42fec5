"""LoRA-GA: start the factors along the directions of the full gradient.

Source: "LoRA-GA: Low-Rank Adaptation with Gradient Approximation" (arXiv 2407.05000), with the
"stable" scale of its authors' code: both factors by m^¼/√γ, without the singular values.
Legend: M output features, N input features, R rank.
"""

import torch
from torch import Tensor

GAMMA = 16.0
OVERSAMPLING, ITERATIONS = 4, 4


def gradient_factors(
    gradient_MN: Tensor, *, r: int, seed: int, gamma: float = GAMMA
) -> tuple[Tensor, Tensor]:
    """Return A (R, N) and B (M, R), fp32, on the gradient's device.

    A are the first r right singular vectors, B the next r left ones: the first step of LoRA is then
    the best approximation of rank 2r to the first step of full fine-tuning (Theorem 3.1).

    Raises:
        ValueError: the gradient has fewer than 2r directions.
    """
    rows, columns = gradient_MN.shape
    if 2 * r > min(rows, columns):
        raise ValueError(f"a {rows}×{columns} weight has fewer than 2·{r} directions; lower peft.r")
    with torch.random.fork_rng(devices=_devices(gradient_MN)):
        torch.manual_seed(seed)
        U, _, V = torch.svd_lowrank(
            gradient_MN.float(), q=min(OVERSAMPLING * r, rows, columns), niter=ITERATIONS
        )
    scale = rows**0.25 / gamma**0.5
    return scale * V[:, :r].T.contiguous(), scale * U[:, r : 2 * r].contiguous()


def _devices(tensor: Tensor) -> list[torch.device]:
    return [tensor.device] if tensor.is_cuda else []
