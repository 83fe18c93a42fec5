"""Models in memory, to try: a few bases, and what was trained on each, within so many bytes.

What was trained on a base shares its weights: the modules are copied, the tensors are not.
"""

import copy
import gc
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers.utils import CONFIG_NAME, cached_file

from worker.dialogue import Show
from worker.memory import GIB
from worker.rundir import Placement
from worker.trainer import model as models
from worker.trainer.faults import RunError
from worker.trainer.heads import Head
from worker.trainer.rebased import CONFIG as ADAPTER_CONFIG

MOST_BASES, MOST_TRAINED = 2, 8
WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to generate, its tokenizer, and the bytes that it alone takes."""

    model: Any
    tokenizer: Any
    size_bytes: int


@dataclass
class Family:
    """A base, and what was trained on it; the last one used stands last."""

    base: Loaded
    trained: OrderedDict[str, Loaded] = field(default_factory=OrderedDict)

    @property
    def size_bytes(self) -> int:
        return self.base.size_bytes + sum(each.size_bytes for each in self.trained.values())


class Cache:
    """The models that were asked last."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._families: OrderedDict[str, Family] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        return sum(family.size_bytes for family in self._families.values())

    def get(self, show: Show) -> Loaded:
        """Return the model that is asked, loaded unless it is there.

        Raises:
            RunError: it cannot be read, or is too large to be tried.
        """
        trained = Path(show.trained) if show.trained else None
        if trained is not None and not (trained / ADAPTER_CONFIG).exists():
            whole = Placement(source="folder", location=str(trained), revision=None)
            return self._family(whole, show).base
        family = self._family(show.base, show)
        if trained is None:
            return family.base
        if (key := trained.name) not in family.trained:
            self._make_room(_stored_bytes(trained), keep=family)
            family.trained[key] = _adapted(family.base, trained)
        family.trained.move_to_end(key)
        return family.trained[key]

    def clear(self) -> None:
        """Let go of all models."""
        self._families.clear()
        _collect()

    def _family(self, placement: Placement, show: Show) -> Family:
        key = placement.model_dump_json()
        if key not in self._families:
            folder = _folder(placement)
            self._make_room(_stored_bytes(folder))
            while len(self._families) >= MOST_BASES:
                self._families.popitem(last=False)
                _collect()
            here = Placement(source="folder", location=str(folder), revision=None)
            self._families[key] = Family(_load(here, Head(show.task)))
        self._families.move_to_end(key)
        return self._families[key]

    def _make_room(self, needed_bytes: int, *, keep: Family | None = None) -> None:
        """Drop what was asked longest ago, until so much more fits."""
        kept_bytes = keep.base.size_bytes if keep else 0
        if kept_bytes + needed_bytes > self._max_bytes:
            raise RunError(
                "too_large",
                f"The model takes {(kept_bytes + needed_bytes) / GIB:.1f} GiB, and a preview may"
                f" take {self._max_bytes / GIB:.1f} GiB on this worker; its operator can raise"
                " BASIN_PREVIEW_CACHE_BYTES.",
                param="model",
            )
        if keep is not None and len(keep.trained) >= MOST_TRAINED:
            keep.trained.popitem(last=False)
        while self.size_bytes + needed_bytes > self._max_bytes and self._drop_oldest(keep):
            pass
        _collect()

    def _drop_oldest(self, keep: Family | None) -> bool:
        oldest = next(iter(self._families.values()))
        if oldest.trained:
            oldest.trained.popitem(last=False)
        elif oldest is not keep:  # which is the youngest
            self._families.popitem(last=False)
        else:
            return False
        return True


def _load(placement: Placement, head: Head) -> Loaded:
    tokenizer = models.load_tokenizer(placement)
    model, _ = models.load_base(placement, models.STORED, head)
    model.eval().requires_grad_(requires_grad=False)
    return Loaded(model, tokenizer, sum(_sizes(model).values()))


def _adapted(base: Loaded, folder: Path) -> Loaded:
    """Put an adapter on a copy of the base that shares its tensors."""
    shared = {id(tensor): tensor for tensor in _tensors(base.model)}
    twin = copy.deepcopy(base.model, dict(shared))
    try:
        model = PeftModel.from_pretrained(twin, str(folder)).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise RunError(
            "adapter_unreadable", f"The adapter does not fit its base any more: {first_line}."
        ) from error
    tokenizer = models.load_tokenizer(
        Placement(source="folder", location=str(folder), revision=None)
    )
    own = sum(size for key, size in _sizes(model).items() if key not in shared)
    return Loaded(model, tokenizer, own)


def _folder(placement: Placement) -> Path:
    """Return where a base is on this machine. The hub is not asked: its models come with jobs.

    Raises:
        RunError: it was never downloaded.
    """
    if placement.source == "folder":
        return Path(placement.location)
    try:
        config = cached_file(
            placement.location, CONFIG_NAME, revision=placement.revision, local_files_only=True
        )
    except OSError as error:
        raise RunError(
            "base_not_here",
            f"{placement.location} is not on this worker yet: the first job on it that runs here"
            " downloads it, and then it can be previewed.",
            param="model",
        ) from error
    return Path(config).parent


def _stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob(WEIGHTS))


def _tensors(model: Any) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _sizes(model: Any) -> dict[int, int]:
    """Return the bytes of each tensor by its id; a tied one counts once."""
    return {id(tensor): tensor.numel() * tensor.element_size() for tensor in _tensors(model)}


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
