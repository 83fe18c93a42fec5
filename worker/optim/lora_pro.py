"""LoRA-Pro: adjust the factors' gradients so that their step is nearest the full gradient's.

Source: "LoRA-Pro: Are Low-Rank Adapters Properly Optimized?" (arXiv 2407.18242), Theorem 2.1 and
the Sylvester equation of its Theorem 2.3. The reference keeps AdamW's moments for each m×n weight;
here they stay in the factors, which costs no memory and is a different optimizer from theirs.
Legend: L modules, R rank, M output and N input features of one module; s = alpha/r.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DAMPING = 1e-8  # B is zero at the start, and BᵀB has no inverse there

Pair = tuple[Tensor, Tensor]  # (A, B)


def projected(
    A_RN: Tensor, B_MR: Tensor, grad_A_RN: Tensor, grad_B_MR: Tensor, *, scale: float
) -> Pair:
    """Return g_A and g_B with s(B g_A + g_B A) = P_B G + (I − P_B) G P_A, the nearest to G.

    Among all such pairs it takes the one nearest the factors' own gradients' scale (Theorem 2.3):
    BᵀB X + X AAᵀ = −(BᵀB)⁻¹ grad_A Aᵀ / s². Only R×R systems are solved, in fp32 at least.
    """
    kind = torch.promote_types(A_RN.dtype, torch.float32)
    A, B, g_A, g_B = (t.to(kind) for t in (A_RN, B_MR, grad_A_RN, grad_B_MR))
    eigen_P_R, U_RR = torch.linalg.eigh(B.T @ B)
    eigen_Q_R, V_RR = torch.linalg.eigh(A @ A.T)
    eigen_P_R = eigen_P_R.clamp_min(0) + DAMPING
    eigen_Q_R = eigen_Q_R.clamp_min(0) + DAMPING
    inverse_P = U_RR / eigen_P_R @ U_RR.T
    inverse_Q = V_RR / eigen_Q_R @ V_RR.T

    lifted_A = inverse_P @ g_A / scale**2
    right_RR = U_RR.T @ (-lifted_A @ A.T) @ V_RR
    X_RR = U_RR @ (right_RR / (eigen_P_R[:, None] + eigen_Q_R[None, :])) @ V_RR.T

    remainder = g_B - B @ (inverse_P @ (B.T @ g_B))
    out_A = lifted_A + X_RR @ A
    out_B = remainder @ inverse_Q / scale**2 - B @ X_RR
    return out_A.to(grad_A_RN.dtype), out_B.to(grad_B_MR.dtype)


def follow(
    optimizer: torch.optim.Optimizer, pairs: Sequence[Pair], scales: Sequence[float]
) -> None:
    """Project the gradients of each (A, B) before every step of the optimizer."""

    @torch.no_grad()
    def project(*_: Any) -> None:
        for (A, B), scale in zip(pairs, scales, strict=True):
            if A.grad is not None and B.grad is not None:
                g_A, g_B = projected(A, B, A.grad, B.grad, scale=scale)
                A.grad.copy_(g_A)
                B.grad.copy_(g_B)

    optimizer.register_step_pre_hook(project)
