"""What a checkpoint was made with: a resumed run is exact on the same, and says so on another."""

import json
from importlib.metadata import version
from pathlib import Path

import torch

from worker.trainer import kernels

FILE = "made_with.json"
BITS = "2"  # counted up where Basin itself comes to other bits than before
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")


def here() -> dict[str, str]:
    """Return the library versions and the device of this process."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    own = {"basin": BITS, kernels.PACKAGE: kernels.in_use(), "device": device}
    return {name: version(name) for name in PACKAGES} | own


def write(folder: Path) -> None:
    (folder / FILE).write_text(json.dumps(here(), indent=2))


def differences(folder: Path) -> list[str]:
    """Return what is other than when the checkpoint was made, as `name was → is`."""
    was, now = json.loads((folder / FILE).read_bytes()), here()
    was = {"basin": "1", kernels.PACKAGE: kernels.NONE} | was  # what older ones do not say
    return [f"{name} {was.get(name)} → {now[name]}" for name in now if was.get(name) != now[name]]
