"""The base models an operator offers: folders, and hub ids that were listed."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.errors import ModelNotFound

CONFIG = "config.json"
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
HUB_CONTEXT = 2048  # what is assumed of a hub model, whose config the API does not read


@dataclass(frozen=True)
class BaseModel:
    """A base model by the name a job uses; `context_length` is in tokens."""

    name: str
    source: Literal["folder", "hub"]
    location: str
    revision: str | None
    context_length: int
    created_at: int


def base_models(models_dir: Path | None, hub: Mapping[str, str | None]) -> Iterator[BaseModel]:
    """Yield what is offered, by name: folders `name` and `org/name` that hold a config.json."""
    folders = (
        [*models_dir.glob(f"*/{CONFIG}"), *models_dir.glob(f"*/*/{CONFIG}")] if models_dir else []
    )
    for config in sorted(folders):
        assert models_dir is not None
        yield _folder(config, name=config.parent.relative_to(models_dir).as_posix())
    for name, revision in sorted(hub.items()):
        yield BaseModel(name, "hub", name, revision, HUB_CONTEXT, created_at=0)


def find(name: str, models_dir: Path | None, hub: Mapping[str, str | None]) -> BaseModel:
    """Return the base model of that name. The name is compared, never made into a path.

    Raises:
        ModelNotFound: the operator offers no such model; the message lists some that are.
    """
    offered = list(base_models(models_dir, hub))
    for model in offered:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in offered[:10]) or "none yet"
    raise ModelNotFound(
        f"The model {name!r} is not offered here; there are: {known}.", param="model"
    )


def _folder(config: Path, *, name: str) -> BaseModel:
    read = json.loads(config.read_bytes())
    lengths = (read.get(key) for key in CONTEXT_KEYS)
    context = next((length for length in lengths if isinstance(length, int)), HUB_CONTEXT)
    return BaseModel(
        name=name,
        source="folder",
        location=str(config.parent.resolve()),
        revision=None,
        context_length=context,
        created_at=int(config.stat().st_mtime),
    )
