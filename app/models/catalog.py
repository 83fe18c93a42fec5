"""The base models an operator offers: folders, and hub ids that were listed."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.errors import ModelNotFound
from app.jobs.spec import Task

CONFIG = "config.json"
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
HUB_CONTEXT = 2048  # what is assumed of a hub model, whose config the API does not read


# Encoder-decoders whose configuration may leave out `is_encoder_decoder`.
ENCODER_DECODERS = frozenset({"t5", "mt5", "umt5", "longt5", "bart", "mbart", "pegasus", "marian"})
CAUSAL_HEADS = ("ForCausalLM", "LMHeadModel")
# What says that an architecture is an encoder, whatever head it was published with.
ENCODER_HEADS = (
    "ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification",
    "ForQuestionAnswering",
)  # fmt: skip
ENCODERS = frozenset(
    {
        "albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra",
        "ernie", "mobilebert", "modernbert", "mpnet", "nomic_bert", "rembert", "roberta",
        "roformer", "squeezebert", "xlm-roberta",
    }
)  # fmt: skip


@dataclass(frozen=True)
class BaseModel:
    """A base model by the name a job uses; `context_length` is in tokens."""

    name: str
    source: Literal["folder", "hub"]
    location: str
    revision: str | None
    context_length: int
    task: Task
    created_at: int


def base_models(
    models_dir: Path | None, hub: Mapping[str, str | None], hub_tasks: Mapping[str, Task]
) -> Iterator[BaseModel]:
    """Yield what is offered, by name: folders `name` and `org/name` that hold a config.json.

    The API reads no configuration of a hub model: what it does is causal, or what `hub_tasks` says.
    """
    folders = (
        [*models_dir.glob(f"*/{CONFIG}"), *models_dir.glob(f"*/*/{CONFIG}")] if models_dir else []
    )
    for config in sorted(folders):
        assert models_dir is not None
        yield _folder(config, name=config.parent.relative_to(models_dir).as_posix())
    for name, revision in sorted(hub.items()):
        task = hub_tasks.get(name, "causal")
        yield BaseModel(name, "hub", name, revision, HUB_CONTEXT, task, created_at=0)


def find(
    name: str,
    models_dir: Path | None,
    hub: Mapping[str, str | None],
    hub_tasks: Mapping[str, Task],
) -> BaseModel:
    """Return the base model of that name. The name is compared, never made into a path.

    Raises:
        ModelNotFound: the operator offers no such model; the message lists some that are.
    """
    offered = list(base_models(models_dir, hub, hub_tasks))
    for model in offered:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in offered[:10]) or "none yet"
    raise ModelNotFound(
        f"The model {name!r} is not offered here; there are: {known}.", param="model"
    )


def of_folder(folder: Path) -> BaseModel:
    """Return the base model that a folder with a config.json holds."""
    return _folder(folder / CONFIG, name=folder.name)


def task_of(config: Mapping[str, Any]) -> Task:
    """Return what a model does, from its config.json alone; one that says nothing is causal."""
    kind = config.get("model_type")
    architectures = config.get("architectures") or []
    if config.get("is_encoder_decoder") or kind in ENCODER_DECODERS:
        return "seq2seq"
    if any(name.endswith(CAUSAL_HEADS) for name in architectures):
        return "causal"
    if kind in ENCODERS or any(name.endswith(ENCODER_HEADS) for name in architectures):
        return "classification"
    return "causal"


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
        task=task_of(read),
        created_at=int(config.stat().st_mtime),
    )
