"""How long the parts of a run take, by its arithmetic. Pure; in seconds, before calibration."""

import math
from dataclasses import dataclass

from app.estimates.memory import CPU, FP32
from app.estimates.rows import Rows, written
from app.estimates.shapes import Shape, trainable
from app.jobs.spec import TrainSpec, planned_steps

# Dense arithmetic a second that training reaches, about a third of what data sheets promise.
RATES = {
    "H200": 3.0e14,
    "H100": 3.0e14,
    "A100": 1.0e14,
    "L40": 6.0e13,
    "L4": 3.0e13,
    "A10": 3.0e13,
    "4090": 5.0e13,
    "3090": 2.5e13,
    "V100": 3.0e13,
    "T4": 1.5e13,
}
GPU_RATE, CPU_RATE = 3.0e13, 3.0e10
LAYER_S = {
    True: 4e-3,
    False: 2e-3,
}  # to launch a layer's operations, forward and backward; CPU, GPU
START_S = {True: 15.0, False: 25.0}  # to import, load, and prove the adapter in the end
READ_RATE = 5e8  # bytes of weights a second
DRAW = 50  # operations that a random number is worth
SAVE_S = 0.3  # of a checkpoint, besides its bytes
WRITE_RATE = 2e8


@dataclass(frozen=True)
class Pace:
    """Seconds of one optimizer step, one evaluation, one checkpoint, and of all the rest."""

    step_s: float
    evaluation_s: float
    checkpoint_s: float
    rest_s: float


@dataclass(frozen=True)
class Counts:
    """How often a run does what."""

    steps: int
    evaluations: int
    checkpoints: int

    def seconds(self, pace: Pace) -> float:
        return (
            self.steps * pace.step_s
            + self.evaluations * pace.evaluation_s
            + self.checkpoints * pace.checkpoint_s
            + pace.rest_s
        )


def counts(spec: TrainSpec, *, rows: int) -> Counts:
    """Return the counts of a run over so many rows, which ends at its budget if that is sooner."""
    planned = planned_steps(spec.training, rows, spec.reinforcement)
    return counts_of(spec, steps=min(planned, spec.budget.max_steps or planned))


def counts_of(spec: TrainSpec, *, steps: int) -> Counts:
    """Return the counts of a run of so many steps."""
    evaluations = 0
    if spec.data.valid_sha256 is not None:
        evaluations = 1 + math.ceil(steps / spec.training.eval_steps)  # the base, and at the end
    return Counts(steps, evaluations, math.ceil(steps / spec.training.checkpoint_steps))


def modelled(
    shape: Shape, spec: TrainSpec, train: Rows, valid: Rows | None, *, device: str
) -> Pace:
    """Return the pace of a run on a device it has for itself."""
    on_cpu = device == CPU
    micro = spec.training.micro_batch_size
    share = spec.training.batch_size // spec.resources.gpus * spec.rollouts
    layers_s = shape.layers * LAYER_S[on_cpu]
    per_token = _training_work(shape, spec, train)
    step_s = share // micro * (layers_s + _noise_work(shape, spec) / rate(device))
    step_s += share * spec.conversations * train.padded(micro) * per_token / rate(device)
    step_s += _sampling_s(shape, spec, share * train.mean, device)
    evaluation_s = 0.0
    if valid is not None:
        passes = _batches(spec, valid) + _sharpness_passes(spec)
        evaluation_s = passes * _forward_s(shape, spec, valid, device)
        evaluation_s += _batches(spec, valid) * _sampling_s(shape, spec, micro * valid.mean, device)
    reference_s = 0.0
    if spec.method == "dpo":
        read = [rows for rows in (train, valid) if rows is not None]
        reference_s = sum(
            _batches(spec, rows) * _forward_s(shape, spec, rows, device) for rows in read
        )
    return Pace(
        step_s=step_s,
        evaluation_s=evaluation_s,
        checkpoint_s=SAVE_S + 4 * FP32 * trainable(shape, spec) / WRITE_RATE,
        rest_s=START_S[on_cpu] + 2 * FP32 * shape.parameters / READ_RATE + reference_s,
    )


def rate(device: str) -> float:
    """Return the floating-point operations a second that a device is taken to reach."""
    if device == CPU:
        return CPU_RATE
    return next((rate for name, rate in RATES.items() if name in device), GPU_RATE)


def _batches(spec: TrainSpec, rows: Rows) -> int:
    return math.ceil(rows.rows / spec.resources.gpus / spec.training.micro_batch_size)


def _forward_s(shape: Shape, spec: TrainSpec, rows: Rows, device: str) -> float:
    """Return the seconds of a micro-batch without a backward pass."""
    micro = spec.training.micro_batch_size
    work = micro * spec.conversations * rows.padded(micro) * _forward_work(shape, spec, rows)
    return shape.layers * LAYER_S[device == CPU] / 3 + work / rate(device)


def _sampling_s(shape: Shape, spec: TrainSpec, tokens: float, device: str) -> float:
    """Return the seconds of writing a batch of rollouts, a token of each at once."""
    passes = written(spec)
    work = tokens * 2.0 * (shape.linear_weights + shape.hidden * shape.vocabulary)
    return passes * shape.layers * LAYER_S[device == CPU] / 3 + (
        work / rate(device) if passes else 0.0
    )


def _forward_work(shape: Shape, spec: TrainSpec, rows: Rows) -> float:
    """Floating-point operations of the forward pass for a token: two for each weight it meets."""
    head = 0 if spec.task == "classification" else shape.hidden * shape.vocabulary
    attention = 2 * shape.layers * shape.hidden * rows.padded(spec.training.micro_batch_size)
    return 2.0 * (shape.linear_weights + head + attention)


def _training_work(shape: Shape, spec: TrainSpec, rows: Rows) -> float:
    """Forward and backward: as much again for activations, and again for weights that are trained.

    Gradient checkpointing repeats the forward pass.
    """
    forward = _forward_work(shape, spec, rows)
    again = forward if spec.training.gradient_checkpointing else 0.0
    if spec.peft.method == "full":
        return 3 * forward + again
    return 2 * forward + 6 * trainable(shape, spec) + again


def _noise_work(shape: Shape, spec: TrainSpec) -> float:
    """Noise is drawn for every weight, again in the backward pass."""
    noisy = spec.perturbation.type in ("random", "ggpo")
    return 2.0 * DRAW * shape.linear_weights if noisy else 0.0


def _sharpness_passes(spec: TrainSpec) -> float:
    """Forward passes that measuring sharpness takes; a backward counts as two."""
    asked = spec.evaluation.sharpness
    return asked.batches * (1 + asked.directions + 3 * asked.ascent_steps) if asked else 0
