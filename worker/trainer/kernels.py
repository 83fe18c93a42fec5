"""liger-kernel's Triton kernels for what a GPU does to its tokens between the matrix products.

Norms, rotary positions and gated activations are each a few of torch's operators, which read and
write all tokens anew; here each is one pass forward and one back. What they compute is the same up
to rounding.
"""

import sys
from contextlib import ExitStack
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from worker.trainer.unpadded import FAMILIES

PACKAGE = "liger-kernel"
NONE = "none"
# The loss is `unpadded`'s: liger's would take the logits of prompts too.
WITHOUT = {"cross_entropy": False, "fused_linear_cross_entropy": False}
ACTIVATIONS = {"gemma": "gelu_pytorch_tanh"}  # the one that is computed, whatever a config says
ACTIVATION = "silu"  # elsewhere
PROBED = 64  # columns of the smallest thing that shows whether kernels compile and run

_in_use: list[str] = []  # the version, while a run computes with it


def use(model: Any, computing: ExitStack) -> str | None:
    """Let a causal model compute with them, where it is on a GPU and they are installed.

    Args:
        computing: closed when the run has computed: models loaded afterwards are their own again.

    Returns:
        Why a GPU that has them installed does without, if it does. Triton compiles them when they
        are first called, for which a machine may lack a C compiler.
    """
    if model.device.type != "cuda" or not fits(model.config) or not is_liger_kernel_available():
        return None
    try:
        _probe(model.device)
        replace(model, computing)
    except Exception as error:  # noqa: BLE001  whatever a compiler or a driver raises: do without
        return f"{type(error).__name__}: {error}"
    _in_use.append(version(PACKAGE))
    computing.callback(_in_use.clear)
    return None


def in_use() -> str:
    """Return the version that a run computes with, or that it computes with none."""
    return _in_use[0] if _in_use else NONE


def fits(config: Any) -> bool:
    """Whether the kernels compute what a model of this kind computes."""
    family: str = config.model_type
    activation = ACTIVATIONS.get(family, ACTIVATION)
    return family in FAMILIES and getattr(config, "hidden_act", None) == activation


def replace(model: Any, computing: ExitStack) -> None:
    """Put the kernels in place of the model's own norms, rotary positions and activations.

    liger-kernel puts them into the module that defines the model, too: whatever is made of it would
    get them. That is taken back when `computing` closes.
    """
    module = sys.modules[type(model).__module__]
    computing.callback(_put_back, module, dict(vars(module)))
    apply_liger_kernel(model, WITHOUT)


def _put_back(module: ModuleType, names: dict[str, Any]) -> None:
    for name, value in names.items():
        if getattr(module, name) is not value:
            setattr(module, name, value)


def _probe(device: torch.device) -> None:
    """Compile a kernel, and run it there and back."""
    from liger_kernel.transformers.rms_norm import LigerRMSNorm  # noqa: PLC0415  needs Triton

    x = torch.ones(2, PROBED, device=device, requires_grad=True)
    LigerRMSNorm(PROBED).to(device)(x).sum().backward()
    torch.cuda.synchronize(device)
