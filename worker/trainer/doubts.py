"""What is doubtful in a run's rows: told once they are read, and no reason not to train."""

import codecs
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from app.files.doubts import OVERLAP, imbalance
from worker.rundir import RunDir
from worker.trainer.data import read_rows
from worker.trainer.heads import Head


def doubts(run: RunDir, head: Head) -> Iterator[tuple[str, str]]:
    """Yield the code and the message of each: rows in both files, labels out of balance."""
    shared = _shared(run.train, run.valid) if run.valid.exists() else 0
    if shared:
        yield "validation_overlap", f"The training file, {shared} times: {OVERLAP}"
    if head.task == "classification":
        counts = Counter(str(row["label"]) for row in read_rows(run.train) if "label" in row)
        message = imbalance(counts.most_common()) if counts else None
        if message is not None:
            yield "label_imbalance", message


def _shared(train: Path, valid: Path) -> int:
    """Count the training rows that stand in the validation file, too, byte for byte."""
    held_out = set(_digests(valid))
    return sum(digest in held_out for digest in _digests(train))


def _digests(path: Path) -> Iterator[bytes]:
    """Yield what tells each row from the others, so that no file is held in memory."""
    with path.open("rb") as file:
        for line in file:
            if row := line.removeprefix(codecs.BOM_UTF8).strip():
                yield hashlib.blake2b(row, digest_size=16).digest()
