"""Estimates on the wire."""

from typing import Any, Literal

from pydantic import BaseModel


class TokensOut(BaseModel):
    """Tokens that go in, cut ones left out; `estimated` are those that no tokenizer counted."""

    per_epoch: int
    total: int
    estimated: bool


class TermsOut(BaseModel):
    """What the arithmetic alone says, before calibration, in bytes on each device."""

    weights: int
    trained: int
    gradients: int
    optimizer: int
    perturbation: int
    reference: int
    rollouts: int
    activations: int
    logits: int
    libraries: int


class MemoryOut(BaseModel):
    """The peak on each device: what is allocated on a GPU, resident on a CPU."""

    low_bytes: int
    expected_bytes: int
    high_bytes: int
    trainable_parameters: int
    modelled: TermsOut


class TimeOut(BaseModel):
    """From the start of the run to its end; `step_s` is what one optimizer step is expected to."""

    low_s: float
    expected_s: float
    high_s: float
    step_s: float


class WaitOut(BaseModel):
    """How long the job would wait before it starts; null where nobody can say."""

    wait_low_s: int | None
    wait_expected_s: int | None
    wait_high_s: int | None
    ahead: int
    reason: str


class BasisOut(BaseModel):
    """What the ranges stand on: how many finished jobs, on which device."""

    finished_jobs: int
    device: str
    words: str


class WorkerFitOut(BaseModel):
    """A worker, and whether it can run the job."""

    id: str
    hostname: str
    device: str
    devices: int
    usable_bytes: int | None
    fits: bool
    words: str


class AdviceOut(BaseModel):
    """A change to the request, and what the job would need of each device with it."""

    change: dict[str, Any]
    expected_bytes: int
    fits: bool


class FitsOut(BaseModel):
    verdict: bool
    words: str
    workers: list[WorkerFitOut]
    advice: list[AdviceOut]


class EstimateOut(BaseModel):
    """What a job would take; memory and time are null where nothing is known of the base model.

    `spec` is resolved as in a job; its seed is null where the submission would draw one.
    """

    object: Literal["fine_tuning.estimate"]
    spec: dict[str, Any]
    steps: int
    tokens: TokensOut
    memory: MemoryOut | None
    time: TimeOut | None
    queue: WaitOut
    basis: BasisOut
    fits: FitsOut
    warnings: list[str]
