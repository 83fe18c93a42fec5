"""Which parameters move together: the LoRA factors of each module, or its weight."""

import re
from collections.abc import Iterable

from torch import nn

_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?:embedding_)?[AB](?:\..+)?$")


def lora_modules(named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, list[nn.Parameter]]:
    """Group trainable LoRA factors by the module they adapt, in the model's order.

    Whatever else trains (whole modules, DoRA's magnitude, AdaLoRA's E) is left out: it is
    not perturbed.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in named:
        found = _FACTOR.match(name)
        if found and parameter.requires_grad:
            groups.setdefault(found["module"], []).append(parameter)
    return groups


def linear_modules(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the trainable weights of all linear layers but the output head, by module.

    The head is the linear layer whose weight is as large as the vocabulary's embedding.
    """
    words = {m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: dict[str, list[nn.Parameter]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features not in words:
            weight = module.get_parameter("weight")
            if weight.requires_grad:
                groups[name] = [weight]
    return groups
