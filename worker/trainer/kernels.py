"""liger-kernel's Triton kernels for what a GPU does to its tokens between the matrix products.

Norms, rotary positions and gated activations are each a few of torch's operators, which read and
write all tokens anew; here each is one pass forward and one back. What they compute is the same up
to rounding.
"""

import sys
from contextlib import ExitStack
from importlib.metadata import version
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
PROBED = 8  # tokens, to see whether the kernels compile and run
LONGEST_FAULT = 300  # characters of what a compiler says

_in_use: list[str] = []  # the version, while a run computes with it


def use(model: Any, computing: ExitStack) -> str | None:
    """Let a causal model compute with them, where it is on a GPU and they are installed.

    Args:
        computing: closed when the run has computed: the model, and those loaded afterwards, compute
            by themselves again.

    Returns:
        Why a GPU that has them installed does without, if it does. Triton compiles them when they
        are first called, for which a machine may lack a C compiler.
    """
    if model.device.type != "cuda" or not fits(model.config) or not is_liger_kernel_available():
        return None
    try:
        with ExitStack() as tried:
            replace(model, tried)
            _probe(model)
            tried.callback(_in_use.clear)
            _in_use.append(version(PACKAGE))
            computing.push(tried.pop_all())
    except Exception as error:  # noqa: BLE001  whatever a compiler or a driver raises: do without
        said = str(error).strip().partition("\n")[0]
        return f"{type(error).__name__}: {said}"[:LONGEST_FAULT]
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
    get them. All is taken back when `computing` closes.
    """
    owners = [sys.modules[type(model).__module__], *model.modules()]
    before = [dict(vars(owner)) for owner in owners]
    try:
        apply_liger_kernel(model, WITHOUT)
    finally:
        for owner, had in zip(owners, before, strict=True):
            has = vars(owner).items()
            changed = [name for name, value in has if name not in had or value is not had[name]]
            computing.callback(_put_back, owner, had, changed)


def _put_back(owner: Any, had: dict[str, Any], changed: list[str]) -> None:
    for name in changed:
        if name in had:
            vars(owner)[name] = had[name]
        else:
            del vars(owner)[name]


def _probe(model: Any) -> None:
    """Go through the model there and back with a few tokens, which compiles what it needs."""
    ids = torch.zeros(1, PROBED, dtype=torch.long, device=model.device)
    inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
    states = model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    torch.autograd.grad(states.sum(), inputs)
    torch.cuda.synchronize(model.device)
