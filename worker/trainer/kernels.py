"""liger-kernel's Triton kernels for what a GPU does to its tokens between the matrix products.

Norms, rotary positions and gated activations are each a few of torch's operators, which read and
write all tokens anew; here each is one pass forward and one back. What they compute is the same up
to rounding.
"""

from typing import Any

import torch
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from worker.trainer.unpadded import FAMILIES

# The loss is `unpadded`'s: liger's would take the logits of prompts too.
WITHOUT = {"cross_entropy": False, "fused_linear_cross_entropy": False}
PROBED = 64  # columns of the smallest thing that shows whether kernels compile and run


def use(model: Any) -> str | None:
    """Let a causal model compute with them, where it is on a GPU and they are installed.

    Returns:
        Why a GPU that has them installed does without, if it does. Triton compiles them when they
        are first called, for which a machine may lack a C compiler.
    """
    if model.device.type != "cuda" or model.config.model_type not in FAMILIES:
        return None
    if not is_liger_kernel_available():
        return None
    if fault := _fault(model.device):
        return fault
    replace(model)
    return None


def replace(model: Any) -> None:
    """Put the kernels in place of the model's own norms, rotary positions and activations."""
    apply_liger_kernel(model, WITHOUT)


def _fault(device: torch.device) -> str | None:
    """Return why a kernel does not run there, None where it does."""
    from liger_kernel.transformers.rms_norm import LigerRMSNorm  # noqa: PLC0415  needs Triton

    x = torch.ones(2, PROBED, device=device, requires_grad=True)
    try:
        LigerRMSNorm(PROBED).to(device)(x).sum().backward()
        torch.cuda.synchronize(device)
    except Exception as error:  # noqa: BLE001  whatever a compiler or a driver raises: do without
        return f"{type(error).__name__}: {error}"
    return None
