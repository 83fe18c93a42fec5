"""Methods that start from W = W_res + s·B₀A₀: the base is changed, the artifact must not need that.

What is exported is W_res + s·BA = W + s·[B, −B₀][A; A₀]: a plain LoRA of twice the rank on the
original base.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

ADAPTER = "default"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

Factors = dict[str, Tensor]  # "module.lora_A" and "module.lora_B", fp32 on the CPU


def lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield each adapted layer with its name, in the model's order."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


def initial_factors(model: Any) -> Factors:
    """Copy the factors as they stand now."""
    return {
        f"{name}.{side}": getattr(layer, side)[ADAPTER].weight.detach().float().cpu().clone()
        for name, layer in lora_layers(model)
        for side in ("lora_A", "lora_B")
    }


@torch.no_grad()
def rebase(model: Any, initial: Mapping[str, Tensor]) -> None:
    """Set the factors to `initial` and take their product out of the base."""
    for name, layer in lora_layers(model):
        A, B = (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
        A.copy_(initial[f"{name}.lora_A"])
        B.copy_(initial[f"{name}.lora_B"])
        weight = layer.get_base_layer().weight
        product = layer.scaling[ADAPTER] * (B @ A)
        weight.copy_(weight.float() - (product.T if layer.fan_in_fan_out else product))


def convert(folder: Path, initial: Mapping[str, Tensor]) -> None:
    """Turn a saved adapter into one for the original base; its rank and alpha double."""
    weights = load_file(folder / WEIGHTS)
    for key, tensor in weights.items():
        start = _initial_of(key, initial)
        if start is not None:
            side_a = key.endswith("lora_A.weight")
            weights[key] = torch.cat([tensor, start if side_a else -start], dim=0 if side_a else 1)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / CONFIG).read_bytes())
    config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"]}
    config["init_lora_weights"] = True
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))


def _initial_of(key: str, initial: Mapping[str, Tensor]) -> Tensor | None:
    return initial.get(key.removesuffix(".weight"))
