"""The labels of a run: a classifier's classes, or the few completions that stand for them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from worker.trainer.data import read_rows
from worker.trainer.faults import RunError

LABELS = "labels.json"
MOST_COMPLETIONS = 20  # more are an open text, not labels


def class_labels(train: Path) -> tuple[str, ...]:
    """Return the labels of a training file as text, in order: integers by value, text by letter.

    Raises:
        RunError: fewer than two.
    """
    found = sorted({row["label"] for row in read_rows(train)})
    if len(found) < 2:
        raise RunError(
            "too_few_labels",
            f"Every training row has the label {found[0]!r}; a classifier needs at least two.",
            param="training_file",
        )
    return tuple(str(label) for label in found)


def write_labels(folder: Path, labels: Sequence[str]) -> None:
    """Write a classifier's labels, in the order of its logits, beside its adapter."""
    (folder / LABELS).write_text(json.dumps(list(labels), ensure_ascii=False), encoding="utf-8")


def check_same(source: Path, labels: Sequence[str]) -> None:
    """Check that a run goes on from a head for the same labels.

    Raises:
        RunError: from one for others.
    """
    before = json.loads((source / LABELS).read_text(encoding="utf-8"))
    if before != list(labels):
        raise RunError(
            "other_labels",
            f"The fine-tuned model tells {before} apart, the training file {list(labels)};"
            " start from the base model instead.",
            param="peft.from",
        )


def completion_labels(files: Iterable[Path]) -> tuple[str, ...]:
    """Return the distinct completions of all rows if they are few and come again, else none."""
    found: set[str] = set()
    rows = 0
    for path in files:
        for row in read_rows(path):
            rows += 1
            found.add(row["completion"])
            if len(found) > MOST_COMPLETIONS:
                return ()
    return tuple(sorted(found)) if 2 <= len(found) <= rows // 2 else ()
