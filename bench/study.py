"""Trials of a study: one method, rank, learning rate and seed each, in a process of its own.

A trial trains a base with the service's own methods and perturbations and keeps the clean held-out
loss on the way, the sharpness at the end, and what it cost. Finished trials are lines of a file, so
that a study that was interrupted goes on.
"""

import json
import math
import multiprocessing as mp
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup, set_seed

from app.jobs.spec import PeftSpec, PerturbationSpec
from worker.optim.sharpness import Sharpness, sharpness
from worker.trainer import methods
from worker.trainer.perturbations import build

WARMUP = 0.03
MAX_GRAD_NORM = 1.0
SHARPNESS_RHO = 0.05
SMOOTHING = 0.7  # of the clean loss curve, before its bump is measured
SAM_RHO = 0.05

WARM = [
    "bench.study",
    "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
]

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Method:
    """A row of the table: which weights, and where their gradient is taken."""

    title: str
    peft: str = "lora"
    perturbation: Mapping[str, Any] = field(default_factory=lambda: {"type": "none"})
    sam: bool = False


def mgpo(**changes: Any) -> dict[str, Any]:
    """Return the perturbation of LoRA-MGPO."""
    plain = {"type": "mgpo", "rho": 0.05, "beta": 0.9, "norm": "module", "apn": "relative"}
    return plain | changes


METHODS = (
    Method("LoRA"),
    Method("LoRA-MGPO, relative", perturbation=mgpo()),
    Method("LoRA-MGPO, off", perturbation=mgpo(apn="off")),
    Method("LoRA-MGPO, paper", perturbation=mgpo(apn="paper", apn_cap=4.0)),
    Method("LoRA + random noise", perturbation={"type": "random", "rho": 0.05}),
    Method("LoRA + SAM", sam=True),
    Method("full", peft="full"),
)


# What else MGPO could be by default, to be compared with the second of METHODS.
VARIANTS = (
    Method("LoRA-MGPO, ρ 0.02", perturbation=mgpo(rho=0.02)),
    Method("LoRA-MGPO, ρ 0.1", perturbation=mgpo(rho=0.1)),
    Method("LoRA-MGPO, ρ 0.2", perturbation=mgpo(rho=0.2)),
    Method("LoRA-MGPO, global norm", perturbation=mgpo(norm="global")),
    Method("LoRA-MGPO, from a quarter on", perturbation=mgpo(start_step=10)),
)


@dataclass(frozen=True)
class Trial:
    """What one process trains; `full` has no rank."""

    method: str
    r: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Result:
    """What came out: clean held-out losses by step, sharpness, and the cost."""

    trial: Trial
    steps: list[int]
    losses: list[float]
    sharpness_worst: float
    sharpness_mean: float
    accuracy: float | None
    forwards: int
    seconds: float
    peak_bytes: int

    @property
    def final(self) -> float:
        return self.losses[-1]

    @property
    def bump(self) -> float:
        """How far the smoothed clean loss rises again: max_t (L_t − min_{s<t} L_s)."""
        return bump(self.losses)


@dataclass(frozen=True)
class Material:
    """What a trial trains on.

    `base` loads a fresh model, `train` yields the batches of a seed, `valid` are the held-out ones,
    and `accuracy` judges a trained model, where the task has such a measure. `sharpness` costs some
    twenty evaluations; without it, it is NaN.
    """

    base: Callable[[], Any]
    train: Callable[[int], Iterator[Batch]]
    valid: Sequence[Batch]
    task_type: str
    steps: int
    evaluate_every: int
    alpha_per_rank: float = 1.0
    accuracy: Callable[[Any], float] | None = None
    sharpness: bool = True


def bump(losses: Sequence[float]) -> float:
    """Measure the second rise of a loss curve, smoothed exponentially; NaN when it diverged."""
    if not all(math.isfinite(loss) for loss in losses):
        return math.nan
    smooth, lowest, highest = losses[0], losses[0], 0.0
    for loss in losses:
        smooth = SMOOTHING * smooth + (1 - SMOOTHING) * loss
        highest = max(highest, smooth - lowest)
        lowest = min(lowest, smooth)
    return highest


def run(
    trials: Sequence[Trial], material: Callable[[], Material], out: Path, *, processes: int
) -> list[Result]:
    """Run what `out` lacks, a process a trial, and return everything it holds."""
    known = {result.trial for result in read(out)}
    missing = [trial for trial in trials if trial not in known]
    out.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(processes) as pool, out.open("a") as file:
        waiting = [pool.submit(_apart, trial, material) for trial in missing]
        for done in track(as_completed(waiting), total=len(waiting), description=out.stem):
            file.write(json.dumps(asdict(done.result())) + "\n")
            file.flush()
    wanted = set(trials)
    return [result for result in read(out) if result.trial in wanted]


def read(out: Path) -> list[Result]:
    """Return the finished trials of a file."""
    if not out.exists():
        return []
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return [Result(**(row | {"trial": Trial(**row["trial"])})) for row in rows]


def _apart(trial: Trial, material: Callable[[], Material]) -> Result:
    """Train in a fresh process, whose peak memory is then the trial's."""
    # From a process that has imported the stack and computed nothing: a trial starts in no time.
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *WARM])
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, trial, material))
    process.start()
    theirs.close()
    try:
        result: Result = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{trial} died with exit code {process.exitcode}") from None
    process.join()
    return result


def _child(pipe: Any, trial: Trial, material: Callable[[], Material]) -> None:
    torch.set_num_threads(1)
    pipe.send(train(trial, material()))


def train(trial: Trial, material: Material) -> Result:
    """Train one trial in this process."""
    method = next(each for each in (*METHODS, *VARIANTS) if each.title == trial.method)
    set_seed(trial.seed)
    base = material.base().to(device())
    attached = methods.attach(
        base,
        _peft(method, trial, alpha_per_rank=material.alpha_per_rank),
        task_type=material.task_type,
        total_steps=material.steps,
        seed=trial.seed,
        batches=list,
    )
    model = attached.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=trial.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(
        optimizer, round(WARMUP * material.steps), material.steps
    )
    perturbation = build(
        PerturbationSpec(**method.perturbation),
        model,
        optimizer,
        total_steps=material.steps,
        seed=trial.seed,
        modules=attached.modules(),
    )
    steps, losses, seconds = [0], [held_out(model, material.valid)], 0.0
    before = _start_peak()
    model.train()
    for step, batch in zip(range(1, material.steps + 1), material.train(trial.seed), strict=False):
        began = _spent()
        optimizer.zero_grad()
        with perturbation.perturbed() if perturbation else nullcontext():
            _loss(model, batch).backward()
        if method.sam:
            _sam_gradient(model, batch, trained)
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        seconds += _spent() - began
        if step % material.evaluate_every == 0 or step == material.steps:
            steps.append(step)
            losses.append(held_out(model, material.valid))
            model.train()
    peak = _peak_bytes() - before
    model.eval()
    found = Sharpness(worst=math.nan, mean=math.nan)
    if material.sharpness:
        loss = partial(_mean_loss, model, material.valid)
        found = sharpness(trained, loss, rho=SHARPNESS_RHO, seed=0)
    accuracy = material.accuracy(model) if material.accuracy else None
    return Result(
        trial, steps, losses, found.worst, found.mean, accuracy,
        forwards=material.steps * (2 if method.sam else 1), seconds=seconds, peak_bytes=peak,
    )  # fmt: skip


@torch.no_grad()
def held_out(model: Any, batches: Iterable[Batch]) -> float:
    """Return the mean loss at the clean weights."""
    model.eval()
    return float(_mean_loss(model, batches))


def _mean_loss(model: Any, batches: Iterable[Batch]) -> Tensor:
    return torch.stack([_loss(model, batch) for batch in batches]).mean()


def _loss(model: Any, batch: Batch) -> Tensor:
    loss: Tensor = model(**{key: value.to(device()) for key, value in batch.items()}).loss
    return loss


def device() -> str:
    """Return where trials train."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _sam_gradient(model: Any, batch: Batch, trained: Sequence[Tensor]) -> None:
    """Take the gradient again at w + ρ g/‖g‖ (SAM, eq. 2), the second pass of the step."""
    moved = [parameter for parameter in trained if parameter.grad is not None]
    clean = [parameter.detach().clone() for parameter in moved]
    length = torch.stack([parameter.grad.norm() for parameter in moved]).norm() + 1e-12
    with torch.no_grad():
        for parameter in moved:
            parameter.add_(parameter.grad, alpha=float(SAM_RHO / length))
            parameter.grad = None
    _loss(model, batch).backward()
    with torch.no_grad():
        for parameter, origin in zip(moved, clean, strict=True):
            parameter.copy_(origin)


def _peft(method: Method, trial: Trial, *, alpha_per_rank: float) -> PeftSpec:
    return PeftSpec(
        method=method.peft,
        r=max(trial.r, 1),
        alpha=alpha_per_rank * max(trial.r, 1),
        dropout=0.0,
        target_modules="all-linear",
        lr_ratio=None,
        source=None,
    )


def _spent() -> float:
    """Return seconds: on a CPU the process's own, so that what else the machine does is not in."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _start_peak() -> int:
    """Forget the largest size so far, and return the size now, in bytes."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    return _peak_bytes()


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
