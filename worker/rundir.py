"""The run folder: the only thing a supervisor and its run share."""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.jobs.spec import TrainEvent, TrainSpec, train_event

CHECKPOINT = "checkpoint-"  # and the step: the Trainer's name for a folder to resume from
EXPORT = "step-"
COMPLETE = "complete"  # written last and deleted first: a checkpoint without it is not whole
CHECKPOINTS_KEPT = 2  # the one before the newest too: that one may not be complete yet
# What a process says that waits for its run folder: that it does, and that it was given one.
READY, BEGUN = b"ready\n", b"begun\n"


class Placement(BaseModel):
    """What only this attempt knows: where the base model is, and when its time is over.

    `ends_at` is in seconds of the machine's monotonic clock, which its processes share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["folder", "hub"]
    location: str
    revision: str | None
    ends_at: float | None = None


class RunDir:
    """Names inside one run folder.

    spec.json, placement.json, train.jsonl, valid.jsonl and source/ (an adapter to go on from) are
    written by the supervisor first;
    events.jsonl and log.txt grow while the run lives; checkpoints/ is what the run resumes from;
    exports/step-N/ and adapter/ appear complete, by rename. leaving/ holds checkpoints on their way
    into the database. failure is there once a rank of several
    has failed. A `quiet` one says nothing: of several ranks the first one speaks for all.
    """

    def __init__(self, path: Path, *, quiet: bool = False) -> None:
        self.path = path
        self.quiet = quiet
        self.spec = path / "spec.json"
        self.placement = path / "placement.json"
        self.train = path / "train.jsonl"
        self.valid = path / "valid.jsonl"
        self.source = path / "source"
        self.events = path / "events.jsonl"
        self.failure = path / "failure"
        self.log = path / "log.txt"
        self.checkpoints = path / "checkpoints"
        self.exports = path / "exports"
        self.leaving = path / "leaving"
        self.adapter = path / "adapter"

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a checkpoint."""
        return self.checkpoints / f"{CHECKPOINT}{step}"

    def export(self, step: int) -> Path:
        """Return the folder of an adapter from the middle of the run."""
        return self.exports / f"{EXPORT}{step}"

    def latest_checkpoint(self, *, upto: float = math.inf) -> Path | None:
        """Return the newest checkpoint that is complete, of those up to a step."""
        complete = [
            found.parent for found in self.checkpoints.glob(f"{CHECKPOINT}*[0-9]/{COMPLETE}")
        ]
        return max((each for each in complete if step_of(each) <= upto), key=step_of, default=None)

    def complete_checkpoint(self, step: int) -> None:
        """Let a run resume from a checkpoint."""
        (self.checkpoint(step) / COMPLETE).touch()

    def remove_old_checkpoints(self, *, keep: int = CHECKPOINTS_KEPT) -> None:
        """Delete all checkpoints but the newest, each of which is not whole before it is less."""
        found = self.checkpoints.glob(f"{CHECKPOINT}*[0-9]")
        for folder in sorted(found, key=step_of)[:-keep]:
            (folder / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(folder)

    def remove(self) -> None:
        """Delete it all, and its checkpoints as `remove_old_checkpoints` does."""
        for mark in self.checkpoints.glob(f"{CHECKPOINT}*/{COMPLETE}"):
            mark.unlink()
        shutil.rmtree(self.path)

    def read_spec(self) -> TrainSpec:
        return TrainSpec.model_validate_json(self.spec.read_bytes())

    def read_placement(self) -> Placement:
        return Placement.model_validate_json(self.placement.read_bytes())

    def append_event(self, event: TrainEvent) -> None:
        """Add one line; a single write of a short line is never seen half by `EventTail`."""
        if not self.quiet:
            self._append(event)

    def append_first_failure(self, event: TrainEvent) -> None:
        """Add the line of the first rank that fails; the others fail because it did."""
        try:
            self.failure.touch(exist_ok=False)
        except FileExistsError:
            return
        self._append(event)

    def _append(self, event: TrainEvent) -> None:
        with self.events.open("ab") as file:
            file.write(event.model_dump_json().encode() + b"\n")


def step_of(folder: Path) -> int:
    """Return the step in the name of a checkpoint or an export."""
    return int(folder.name.rpartition("-")[2])


class LineTail:
    """Reads what was appended to a file since the last look, whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def mark(self) -> int:
        """Return where the next look starts, for `back_to`."""
        return self._offset

    def back_to(self, mark: int) -> None:
        """Look again from there: what was read could not be passed on."""
        self._offset = mark

    def has_grown(self) -> bool:
        """Whether there is more than what was read."""
        try:
            return self._path.stat().st_size > self._offset
        except FileNotFoundError:
            return False

    def read(self, limit: int = 1 << 20) -> bytes:
        """Return the new whole lines, at most about `limit` bytes of them, or nothing."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(limit)
        except FileNotFoundError:
            return b""
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and len(data) == limit:
            whole = data  # one line longer than the limit: pass it on in pieces
        self._offset += len(whole)
        return whole


def parse_events(lines: bytes) -> Iterator[TrainEvent]:
    """Turn whole lines of events.jsonl into events."""
    for line in lines.splitlines():
        yield train_event.validate_json(line)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is there complete, or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def link_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint by links, whole: its run may delete it meanwhile.

    Raises:
        FileNotFoundError: it has begun to.
    """
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, copy)
    if not (source / COMPLETE).exists():  # then some file may have been gone before it was seen
        raise FileNotFoundError(f"{source} is being deleted")


def remove_whole(folder: Path) -> None:
    """Delete a folder that nobody may take for whole when a part of it is gone."""
    gone = folder.with_name(f"{folder.name}.gone")
    folder.rename(gone)
    shutil.rmtree(gone)
