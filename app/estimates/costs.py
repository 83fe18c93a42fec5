"""What a run takes on a device: the arithmetic, calibrated on what jobs took. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from app.estimates import calibration, memory, pace, rows
from app.estimates.calibration import Band, Basis, Calibrated, Finished
from app.estimates.history import Ended, Timing
from app.estimates.memory import Memory
from app.estimates.pace import Counts
from app.estimates.rows import Rows
from app.estimates.shapes import Shape, guessed
from app.jobs.spec import TrainSpec
from app.tables import Json

Reports = Mapping[tuple[str, str], Json]  # what files hold in tokens, by sha256 and base model
Shapes = Callable[[str], Shape | None]  # of a base model, by its name


@dataclass(frozen=True)
class Costs:
    """A run on a device. `train` and `valid` are what reports say of the files in tokens."""

    shape: Shape
    spec: TrainSpec
    device: str
    context_length: int
    train: Json
    valid: Json | None
    finished: Sequence[Finished]

    @cached_property
    def rows(self) -> Rows:
        return self._rows(self.spec)

    @cached_property
    def counts(self) -> Counts:
        return pace.counts(self.spec, rows=self.rows.rows)

    @cached_property
    def basis(self) -> Basis:
        kind = calibration.kind_of(self.spec, self.device)
        return calibration.basis(kind, self._pace, self.finished)

    @cached_property
    def calibrated(self) -> Calibrated:
        return calibration.calibrate(self._pace, self.basis)

    @cached_property
    def terms(self) -> Memory:
        return self._memory(self.spec)

    @property
    def seconds(self) -> Band:
        """The time of the run; a budget of time ends it, and a minute or two later at most."""
        limit_s = self.spec.budget.max_duration_s
        found = self.calibrated.seconds(self.counts)
        return found if limit_s is None else found.within(0.0, float(limit_s))

    def bytes_of(self, spec: TrainSpec) -> Band:
        """Return the memory of another run, calibrated as this one."""
        return self.calibrated.memory_ratio * self._memory(spec).total

    @cached_property
    def _pace(self) -> pace.Pace:
        valid = None
        if self.valid is not None:
            limit = limit_of(self.spec, self.valid, self.context_length)
            valid = rows.counted(self.valid, rows=self.spec.data.valid_rows, limit=limit)
            valid = rows.rolled_out(valid, self.spec, limit=limit)
        return pace.modelled(self.shape, self.spec, self.rows, valid, device=self.device)

    def _rows(self, spec: TrainSpec) -> Rows:
        limit = limit_of(spec, self.train, self.context_length)
        found = rows.counted(self.train, rows=spec.data.train_rows, limit=limit)
        return rows.rolled_out(found, spec, limit=limit)

    def _memory(self, spec: TrainSpec) -> Memory:
        length = self._rows(spec).longest
        return memory.modelled(self.shape, spec, device=self.device, length=length)


def limit_of(spec: TrainSpec, tokens: Json, context_length: int) -> int:
    """Return where a run cuts rows: what was asked for, as far as the base and tokenizer reach."""
    limits = [spec.training.max_length, context_length]
    if spec.task != "causal" and tokens["max_length"] is not None:
        limits.append(tokens["max_length"])
    return min(limits)


def measured(
    jobs: Sequence[Ended], timings: Mapping[str, Timing], reports: Reports, shapes: Shapes
) -> list[Finished]:
    """Return finished jobs with what the arithmetic says of them beside what they took."""
    return [
        _finished(job, timings[job.job_id], reports, shapes)
        for job in jobs
        if job.job_id in timings
    ]


def _finished(job: Ended, timing: Timing, reports: Reports, shapes: Shapes) -> Finished:
    spec, device = job.spec, job.started.device
    shape = shapes(spec.base_model) or guessed_of(job)
    train = _rows_of(job, spec.data.train_sha256, spec.data.train_rows, reports)
    valid = None
    if spec.data.valid_sha256 is not None:
        valid = _rows_of(job, spec.data.valid_sha256, spec.data.valid_rows, reports)
    held = memory.modelled(shape, spec, device=device, length=train.longest)
    step_s, checkpoint_s = _step_and_checkpoint(timing)
    counts = pace.counts_of(spec, steps=job.steps)
    known = step_s is not None
    parts = pace.Pace(step_s or 0.0, timing.evaluation_s or 0.0, checkpoint_s or 0.0, 0.0)
    rest_s = max(job.lasted_s - counts.seconds(parts), calibration.LEAST_S)
    return Finished(
        kind=calibration.kind_of(spec, device),
        modelled=pace.modelled(shape, spec, train, valid, device=device),
        modelled_bytes=held.total,
        step_s=step_s,
        evaluation_s=timing.evaluation_s,
        checkpoint_s=checkpoint_s,
        rest_s=rest_s if known else None,
        peak_bytes=timing.peak_bytes,
    )


def guessed_of(job: Ended) -> Shape:
    """Return the shape of a base that is no folder here, from how large a run found it."""
    whole = job.spec.peft.method == "full"
    trained = 0 if whole else job.started.trainable_parameters
    return guessed(job.started.total_parameters - trained)


def _rows_of(job: Ended, sha256: str, count: int, reports: Reports) -> Rows:
    """Return a file's rows: as a report counted them, or from the tokens that the run saw."""
    spec = job.spec
    tokens = reports.get((sha256, spec.base_model))
    if tokens is not None:
        limit = limit_of(spec, tokens, spec.training.max_length)
        return rows.rolled_out(rows.counted(tokens, rows=count, limit=limit), spec, limit=limit)
    sequences = spec.training.batch_size * spec.conversations * spec.rollouts
    mean = job.tokens / (job.steps * sequences)
    return rows.assumed(rows=count, mean=mean, limit=spec.training.max_length)


def _step_and_checkpoint(timing: Timing) -> tuple[float | None, float | None]:
    """Tell a step from what a checkpoint added to it; where each left one, it is the step's."""
    if timing.step_s is None or timing.saving_step_s is None:
        return timing.step_s or timing.saving_step_s, None
    return timing.step_s, max(timing.saving_step_s - timing.step_s, 0.0)
