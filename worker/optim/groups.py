"""Which parameters move together: the LoRA factors A and B of each module."""

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
