"""What a checkpoint was made with: a resumed run is exact on the same, and says so on another."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

FILE = "made_with.json"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
OPTIONAL = "liger-kernel"  # where there is a GPU to use it


def here() -> dict[str, str]:
    """Return the library versions and the device of this process."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    kernels = {OPTIONAL: _version(OPTIONAL)} if torch.cuda.is_available() else {}
    return {name: version(name) for name in PACKAGES} | kernels | {"device": device}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def write(folder: Path) -> None:
    (folder / FILE).write_text(json.dumps(here(), indent=2))


def differences(folder: Path) -> list[str]:
    """Return what is other than when the checkpoint was made, as `name was → is`."""
    was, now = json.loads((folder / FILE).read_bytes()), here()
    return [f"{name} {was.get(name)} → {now[name]}" for name in now if was.get(name) != now[name]]
