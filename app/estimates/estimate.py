"""An estimate, put together: what a job comes to, takes and waits for. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from app.estimates import costs, pace, rows, verdict
from app.estimates.calibration import Band, Finished
from app.estimates.costs import Costs
from app.estimates.history import Ended
from app.estimates.memory import CPU
from app.estimates.rows import Rows
from app.estimates.schemas import (
    AdviceOut,
    BasisOut,
    EstimateOut,
    FitsOut,
    MemoryOut,
    TermsOut,
    TimeOut,
    TokensOut,
    WaitOut,
    WorkerFitOut,
)
from app.estimates.shapes import Shape, trainable
from app.estimates.verdict import Advice, Fit
from app.jobs import defaults
from app.jobs.queue import Place
from app.jobs.schemas import CreateJob
from app.jobs.spec import TrainSpec, epoch_steps
from app.tables import Json
from app.workers import service as workers
from app.workers.service import Node

SOON_S = 5  # until a free worker looks for what waits


@dataclass(frozen=True)
class Surroundings:
    """What the installation is like at this moment."""

    nodes: Sequence[Node]
    place: Place
    durations_s: tuple[float, float, float] | None
    ended: Sequence[Ended]
    finished: Sequence[Finished]


@dataclass(frozen=True)
class Estimate:
    """A job that might be submitted. `train` and `valid` are what reports say of the files.

    `shape` is null where nothing is known of the base model; memory and time are not then.
    """

    spec: TrainSpec
    shape: Shape | None
    context_length: int
    train: Json
    valid: Json | None
    around: Surroundings

    def shown(self, body: CreateJob, warnings: Sequence[str]) -> EstimateOut:
        """Put it on the wire."""
        return EstimateOut(
            object="fine_tuning.estimate",
            spec=spec_shown(body, self.spec),
            steps=self._steps,
            tokens=self._tokens(),
            memory=self._memory(),
            time=self._time(),
            queue=wait(self.around, needed=self.spec.resources.gpus, typical_s=self._typical_s),
            basis=self._basis(),
            fits=self._fits(),
            warnings=[*warnings, *_warnings(self.spec, self._rows)],
        )

    @cached_property
    def _rows(self) -> Rows:
        limit = costs.limit_of(self.spec, self.train, self.context_length)
        found = rows.counted(self.train, rows=self.spec.data.train_rows, limit=limit)
        return rows.rolled_out(found, self.spec, limit=limit)

    @cached_property
    def _steps(self) -> int:
        return pace.counts(self.spec, rows=self._rows.rows).steps

    @cached_property
    def _workers(self) -> list[Fit]:
        return verdict.judge(self.around.nodes, self.spec, self._need)

    @cached_property
    def _device(self) -> str:
        """The kind of device it would run on: the best worker's, else that of the last job."""
        if self._workers:
            return self._workers[0].device
        return self.around.ended[0].started.device if self.around.ended else CPU

    @property
    def _typical_s(self) -> tuple[float, float, float] | None:
        """How long jobs run here: as finished ones did, before the first as this one would."""
        if self.around.durations_s is not None or self._costs is None:
            return self.around.durations_s
        band = self._costs.seconds
        return band.low, band.expected, band.high

    @cached_property
    def _costs(self) -> Costs | None:
        return self._costs_on(self._device)

    def _costs_on(self, device: str) -> Costs | None:
        if self.shape is None:
            return None
        return Costs(
            shape=self.shape,
            spec=self.spec,
            device=device,
            context_length=self.context_length,
            train=self.train,
            valid=self.valid,
            finished=self.around.finished,
        )

    def _need(self, spec: TrainSpec, device: str) -> Band | None:
        found = self._costs_on(device)
        return found.bytes_of(spec) if found else None

    def _tokens(self) -> TokensOut:
        each = self.spec.conversations * self.spec.rollouts
        per_epoch = self._rows.mean * self._rows.rows * each
        steps = epoch_steps(self.spec.training.batch_size, self._rows.rows, self.spec.reinforcement)
        steps_per_epoch = max(steps, 1)
        return TokensOut(
            per_epoch=round(per_epoch),
            total=round(per_epoch * self._steps / steps_per_epoch),
            estimated=self.train["estimated"] or self.spec.reinforcement is not None,
        )

    def _memory(self) -> MemoryOut | None:
        found = self._costs
        if found is None:
            return None
        band = found.bytes_of(self.spec)
        return MemoryOut(
            low_bytes=round(band.low),
            expected_bytes=round(band.expected),
            high_bytes=round(band.high),
            trainable_parameters=trainable(found.shape, self.spec),
            modelled=TermsOut(**asdict(found.terms)),
        )

    def _time(self) -> TimeOut | None:
        found = self._costs
        if found is None:
            return None
        band = found.seconds
        return TimeOut(
            low_s=round(band.low, 1),
            expected_s=round(band.expected, 1),
            high_s=round(band.high, 1),
            step_s=found.calibrated.step_s.expected,
        )

    def _basis(self) -> BasisOut:
        found = self._costs
        if found is None:
            words = (
                f"the size of {self.spec.base_model} is not known here before its first run: its"
                " memory and time cannot be told"
            )
            return BasisOut(finished_jobs=0, device=self._device, words=words)
        jobs = len(found.basis.jobs)
        return BasisOut(finished_jobs=jobs, device=self._device, words=found.basis.words)

    def _fits(self) -> FitsOut:
        advice = verdict.advice(self._workers, self.spec, self._need)
        return FitsOut(
            verdict=any(fit.fits for fit in self._workers),
            words=verdict.words(self._workers),
            workers=[_fit_out(fit) for fit in self._workers],
            advice=[_advice_out(each) for each in advice],
        )


def spec_shown(body: CreateJob, spec: TrainSpec) -> Json:
    """Return the resolved spec under the names that a job shows it by."""
    return {
        "model": spec.base_model,
        "task": spec.task,
        "training_file": body.training_file,
        "validation_file": body.validation_file,
        "suffix": body.suffix,
        "metadata": body.metadata,
        "priority": body.priority,
        "seed": body.seed,
        "method": defaults.shown_method(spec),
        "hyperparameters": defaults.shown_hyperparameters(spec),
        **spec.model_dump(
            mode="json",
            include={
                "peft", "perturbation", "training", "evaluation", "resources", "budget",
            },
        ),
    }  # fmt: skip


def wait(
    around: Surroundings, *, needed: int, typical_s: tuple[float, float, float] | None
) -> WaitOut:
    """Return the wait: none where a device is free, else rounds of jobs of a typical length."""
    ahead, nodes, full = around.place.number - 1, around.nodes, around.place.full
    waits: list[int | None] = [None, None, None]
    if not full and ahead < sum(node.free // needed for node in nodes):
        waits = [0, 0, SOON_S]
    elif not full and typical_s is not None:
        waits = [
            workers.wait_s(nodes, needed=needed, ahead=ahead, typical_s=each) for each in typical_s
        ]
    low, expected, high = waits
    return WaitOut(
        wait_low_s=low,
        wait_expected_s=expected,
        wait_high_s=high,
        ahead=ahead,
        reason=workers.why_waiting(nodes, needed=needed, ahead=ahead, full=full),
    )


def _warnings(spec: TrainSpec, found: Rows) -> list[str]:
    told = []
    if found.cut:
        told.append(f"{found.cut} rows of the training file are too long and will be cut.")
    if found.dropped:
        told.append(f"{found.dropped} rows keep no answer when they are cut: they are left out.")
    if not found.rows:
        told.append("No row keeps an answer: the run would fail. Raise training.max_length.")
    if spec.training.early_stopping is not None:
        told.append("Early stopping may end the run sooner; it is counted in full.")
    if spec.budget.max_duration_s is not None:
        told.append(
            f"The budget ends the run after {spec.budget.max_duration_s} s, with the adapter that"
            " it has by then."
        )
    return told


def _fit_out(fit: Fit) -> WorkerFitOut:
    return WorkerFitOut(
        id=fit.node.id,
        hostname=fit.node.hostname,
        device=fit.device,
        devices=len(fit.node.devices),
        usable_bytes=None if fit.usable is None else round(fit.usable),
        fits=fit.fits,
        words=fit.words,
    )


def _advice_out(advice: Advice) -> AdviceOut:
    return AdviceOut(
        change=advice.change, expected_bytes=round(advice.expected_bytes), fits=advice.fits
    )
