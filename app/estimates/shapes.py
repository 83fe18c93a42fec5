"""The shape of a base model, from its config.json and the headers of its safetensors alone."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.jobs.spec import PeftSpec, Task, TrainSpec
from app.models.catalog import CONFIG, BaseModel

ADALORA_INITIAL = 1.5  # times the rank that is left in the end, as the trainer starts
HEADER_BYTES = 8  # a little-endian length stands before the header
LONGEST_HEADER = 100 << 20
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
# What holds two-dimensional weights and is no linear layer that PEFT adapts.
EMBEDDINGS = ("embed", "shared", "wte", "wpe", "position", "relative_attention_bias", "norm")
HEADS = ("lm_head", "classifier", "score", "qa_outputs")
PRETRAINING = ("cls.", "lm_head.", "generator_lm_head.")  # of encoders: a classifier drops them
TYPICAL_HEAD = 128  # dimensions of an attention head in models of billions of weights


@dataclass(frozen=True)
class Shape:
    """The sizes that memory and time follow from; `linears` are (out, in) by module name."""

    parameters: int
    linears: Mapping[str, tuple[int, int]]
    hidden: int
    layers: int
    heads: int
    vocabulary: int
    whole_attention: bool  # its scores are kept, one for each pair of tokens

    @property
    def linear_weights(self) -> int:
        return sum(out * into for out, into in self.linears.values())

    @property
    def largest_linear(self) -> int:
        return max((out * into for out, into in self.linears.values()), default=0)


def read(base: BaseModel) -> Shape | None:
    """Return the shape of a base in a folder; None where its files do not tell."""
    if base.source != "folder":
        return None
    folder = Path(base.location)
    config = json.loads((folder / CONFIG).read_bytes())
    config |= config.get("text_config") or {}
    tensors = dict(_tensors(folder))
    if base.task == "classification":
        tensors = {name: dims for name, dims in tensors.items() if not name.startswith(PRETRAINING)}
    hidden = _first(config, "hidden_size", "d_model", "n_embd")
    vocabulary = _first(config, "vocab_size")
    if not tensors or hidden is None or vocabulary is None:
        return None
    encoders = _first(config, "num_hidden_layers", "num_layers", "n_layer") or 1
    decoders = _first(config, "num_decoder_layers", "decoder_layers") or encoders
    return Shape(
        parameters=sum(map(math.prod, tensors.values())),
        linears={
            name.removesuffix(".weight"): (dims[0], dims[1])
            for name, dims in tensors.items()
            if _is_linear(name, dims)
        },
        hidden=hidden,
        layers=encoders + decoders if base.task == "seq2seq" else encoders,
        heads=_first(config, "num_attention_heads", "num_heads", "n_head") or 1,
        vocabulary=vocabulary,
        whole_attention=config.get("model_type") in ("t5", "mt5", "umt5", "longt5"),
    )


def guessed(parameters: int) -> Shape:
    """Return the usual shape of a model of so many weights: of a hub model no more is known.

    12 layers' worth of hidden² each, and as many layers as its heads of 128 dimensions.
    """
    hidden = max(round((parameters * TYPICAL_HEAD / 12) ** (1 / 3)), 1)
    layers = max(hidden // TYPICAL_HEAD, 1)
    block = {"attention": (4 * hidden, hidden), "up": (4 * hidden, hidden)}
    block["down"] = (hidden, 4 * hidden)
    return Shape(
        parameters=parameters,
        linears={f"{n}.{name}": dims for n in range(layers) for name, dims in block.items()},
        hidden=hidden,
        layers=layers,
        heads=max(hidden // TYPICAL_HEAD, 1),
        vocabulary=32_000,
        whole_attention=False,
    )


def trainable(shape: Shape, spec: TrainSpec) -> int:
    """Return how many numbers a run trains."""
    peft = spec.peft
    if peft.method == "full":
        return shape.parameters + _new_head(shape, spec.task)
    adapted, rank = targets(shape, peft), _rank(peft)
    beside = 0
    if peft.method == "dora":
        beside = sum(out for out, _ in adapted)
    elif peft.method == "adalora":
        beside = rank * len(adapted)
    return factors(adapted, rank) + beside + _new_head(shape, spec.task)


def perturbed(shape: Shape, spec: TrainSpec) -> int:
    """Return how many numbers LoRA-MGPO moves: the factors, or the weights of linear layers."""
    if spec.peft.method == "full":
        return shape.linear_weights
    return factors(targets(shape, spec.peft), _rank(spec.peft))


def targets(shape: Shape, peft: PeftSpec) -> list[tuple[int, int]]:
    """Return the (out, in) of what an adapter adapts, as PEFT finds modules by name."""
    if peft.target_modules == "all-linear":
        return list(shape.linears.values())
    return [
        dims
        for name, dims in shape.linears.items()
        if any(name == target or name.endswith(f".{target}") for target in peft.target_modules)
    ]


def factors(adapted: list[tuple[int, int]], rank: int) -> int:
    """Return the size of A (r × in) and B (out × r) over all modules."""
    return sum(rank * (out + into) for out, into in adapted)


def _rank(peft: PeftSpec) -> int:
    """Return the rank that a run starts with."""
    return math.ceil(ADALORA_INITIAL * peft.r) if peft.method == "adalora" else peft.r


def _new_head(shape: Shape, task: Task) -> int:
    """A classifier's head is trained whole: a dense layer, and a row for each of a few labels."""
    return shape.hidden * (shape.hidden + 3) if task == "classification" else 0


def _tensors(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Yield the name and the dimensions of each tensor of floats."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(HEADER_BYTES), "little")
            if size > LONGEST_HEADER:
                continue
            header: dict[str, Any] = json.loads(file.read(size))
        for name, tensor in header.items():
            if name != "__metadata__" and tensor["dtype"] in FLOATS:
                yield name, tensor["shape"]


def _is_linear(name: str, dims: list[int]) -> bool:
    parts = name.lower()
    return (
        len(dims) == 2
        and name.endswith(".weight")
        and not any(word in parts for word in EMBEDDINGS + HEADS)
    )


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    found = (config.get(name) for name in names)
    return next((value for value in found if isinstance(value, int)), None)
