"""Says what is fine-tuned on what: the user's model and rows, or what stands in for them."""

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.files.parse import Row
from app.files.rows import MIN_ROWS, RowChecker
from demo.corpus import read_corpus
from demo.service import DemoError

HELD_OUT_SHARE = 0.1
MOST_HELD_OUT = 128
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
QUICK_TRAIN, QUICK_VALID = 160, 16
SHUFFLE_SEED = 7  # not the job's seed: another seed trains on the same rows


@dataclass(frozen=True)
class Base:
    """A base model: its name at the service, and where transformers finds it."""

    name: str
    location: str
    revision: str | None = None
    on_hub: bool = False
    stand_in: bool = False

    @property
    def hub_models(self) -> list[str]:
        """What the service must be allowed to load from the hub."""
        return [f"{self.name}@{self.revision}" if self.revision else self.name] * self.on_hub


@dataclass(frozen=True)
class Rows:
    """What the adapters learn, and what they are judged by."""

    train: Sequence[Row]
    valid: Sequence[Row]
    own: bool


def own_base(model: str) -> Base:
    """Return the user's model: a folder, or an id on the hub.

    Raises:
        DemoError: it is neither.
    """
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        folder = folder.resolve()
        return Base(name=folder.name, location=str(folder))
    if folder.is_dir():
        raise DemoError(
            f"{folder} has no config.json; MODEL is a folder in Hugging Face's format, with"
            " config.json, *.safetensors and tokenizer.json."
        )
    if not HUB_ID.fullmatch(model):
        raise DemoError(f"There is no folder {model}, and a hub id looks like org/name.")
    name, _, revision = model.partition("@")
    return Base(name=name, location=name, revision=revision or None, on_hub=True)


def own_rows(path: Path) -> Rows:
    """Return the user's rows, checked as the service does, a tenth of them held out.

    Raises:
        DemoError: the file is not there, too short, or not training data.
    """
    try:
        content = path.expanduser().read_bytes()
    except OSError as error:
        raise DemoError(f"Cannot read DATA {path}: {error.strerror}.") from error
    checker = RowChecker()
    checker.feed(content)
    if problems := checker.finish():
        raise DemoError("\n".join([f"{path} is not training data:", *problems]))
    rows: list[Row] = [json.loads(line) for line in content.split(b"\n") if line.strip()]
    if len(rows) < 2 * MIN_ROWS:
        raise DemoError(
            f"{path} has {len(rows)} rows; {2 * MIN_ROWS} are needed:"
            f" {MIN_ROWS} to learn from and {MIN_ROWS} to hold out."
        )
    return split(rows)


def split(rows: Iterable[Row]) -> Rows:
    """Shuffle rows and hold some out; the same rows are always split alike."""
    shuffled = list(rows)
    random.Random(SHUFFLE_SEED).shuffle(shuffled)
    held_out = min(MOST_HELD_OUT, max(MIN_ROWS, round(len(shuffled) * HELD_OUT_SHARE)))
    return Rows(train=shuffled[held_out:], valid=shuffled[:held_out], own=True)


def documentation_rows(*, quick: bool) -> Rows:
    """Return questions on Python's standard library, answered by its docstrings."""
    corpus = read_corpus()
    if quick:
        return Rows(corpus.train[:QUICK_TRAIN], corpus.valid[:QUICK_VALID], own=False)
    return Rows(corpus.train, corpus.valid, own=False)


def offer(base: Base, models: Path) -> None:
    """Let the service find a folder of the user's among its models."""
    link = models / base.name
    if base.on_hub or link.resolve() == Path(base.location):
        return
    if link.is_symlink():
        link.unlink()
    link.symlink_to(base.location)


def to_jsonl(rows: Sequence[Row]) -> bytes:
    """Return rows as a training file."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
