"""Whether a run fits a worker, and which knob to turn where it does not. Pure."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.estimates.calibration import Band
from app.estimates.memory import CPU, GIB
from app.jobs.spec import TrainSpec
from app.workers.service import Node

# What a run can have of a device's memory: a driver's context and fragments take the rest of a
# GPU's; on a machine everything else that runs there.
CPU_SHARE, GPU_SHARE = 0.9, 0.95
GPU_CONTEXT = GIB // 2
SHORTEST = 64  # tokens; advice goes no further down

Need = Callable[[TrainSpec, str], Band | None]  # of a spec on a device, bytes on each


@dataclass(frozen=True)
class Fit:
    """What a worker means to a job: `needed` and `usable` are bytes, null where unknown."""

    node: Node
    device: str
    needed: Band | None
    usable: float | None
    fits: bool
    words: str


@dataclass(frozen=True)
class Advice:
    """A change to the request, and what the job would need of each device with it."""

    change: dict[str, Any]
    expected_bytes: float
    fits: bool


def device_of(node: Node) -> str:
    """Return the kind of a worker's devices: cpu, or the GPU's name where it is known."""
    if node.devices[0] == CPU:
        return CPU
    return node.hardware[0].name if node.hardware else "gpu"


def judge(nodes: Sequence[Node], spec: TrainSpec, need: Need) -> list[Fit]:
    """Return what each worker means to the job: those that fit first, of them the freest."""
    found = [_fit(node, spec, need) for node in nodes]
    return sorted(found, key=lambda fit: (not fit.fits, -fit.node.free, -(fit.usable or 0)))


def words(fits: Sequence[Fit]) -> str:
    """Say in a sentence whether the job fits any worker."""
    if not fits:
        return "No worker is alive; start one with `basin worker`."
    if fits[0].fits or len(fits) == 1:
        return fits[0].words
    return f"It fits none of {len(fits)} workers. {fits[0].words}"


def advice(fits: Sequence[Fit], spec: TrainSpec, need: Need) -> list[Advice]:
    """Return what would make a job fit that fits nowhere: each knob alone, then all together."""
    roomy = [fit for fit in fits if fit.usable is not None and len(fit.node.devices) >= _gpus(spec)]
    if not roomy or any(fit.fits for fit in fits):
        return []
    where = max(roomy, key=lambda fit: fit.usable or 0)
    found: list[Advice] = []
    together: dict[str, Any] = {}
    for steps in _knobs(spec):
        for change in steps:
            advised = _advised(spec, change, where, need)
            if advised is not None and (advised.fits or change == steps[-1]):
                found.append(advised)
                break
        together |= steps[-1]
    if together and not any(each.fits for each in found):
        all_of_them = _advised(spec, together, where, need)
        found += [all_of_them] if all_of_them else []
    return found


def changed(spec: TrainSpec, change: dict[str, Any]) -> TrainSpec:
    """Return a spec with other values, named as in a request: training.max_length."""
    parts: dict[str, dict[str, Any]] = {}
    for name, value in change.items():
        part, _, field = name.partition(".")
        parts.setdefault(part, {})[field] = value
    new = {part: getattr(spec, part).model_copy(update=fields) for part, fields in parts.items()}
    return spec.model_copy(update=new)


def gib(size: float) -> str:
    """Return a size for people: GiB, or MiB where that is less than one."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.0f} MiB"


def _fit(node: Node, spec: TrainSpec, need: Need) -> Fit:
    device = device_of(node)
    needed = need(spec, device)
    if needed is not None and device == CPU:
        needed = needed * _gpus(spec)  # ranks share the machine's memory
    usable = _usable(node, device)
    fits, said = _said(node, spec, device=device, needed=needed, usable=usable)
    return Fit(node, device, needed, usable, fits, said)


def _said(
    node: Node, spec: TrainSpec, *, device: str, needed: Band | None, usable: float | None
) -> tuple[bool, str]:
    has, asked = len(node.devices), _gpus(spec)
    where = f"{node.hostname} ({device})"
    if has < asked:
        return False, f"It asks for {asked} devices of one worker, and {where} has {has}."
    if needed is None:
        return True, f"{where} has devices enough; what the base model needs of them is not known."
    about = gib(needed.expected)
    if usable is None:
        return True, f"{where} has devices enough, of a memory that is not known: it needs {about}."
    of = f"of the {gib(usable)} that a run can have on {where}"
    if needed.expected > usable:
        return False, f"It does not fit: it needs about {about} {of}."
    if needed.high > usable:
        return True, f"It fits, probably: it needs about {about}, at most {gib(needed.high)}, {of}."
    return True, f"It fits: it needs about {about} {of}."


def _usable(node: Node, device: str) -> float | None:
    sizes = [each.memory_bytes for each in node.hardware]
    known = [size for size in sizes if size is not None]
    if not known or len(known) < len(sizes):
        return None
    if device == CPU:
        return CPU_SHARE * min(known)
    return GPU_SHARE * min(known) - GPU_CONTEXT


def _advised(spec: TrainSpec, change: dict[str, Any], where: Fit, need: Need) -> Advice | None:
    needed = need(changed(spec, change), where.device)
    if needed is None or where.usable is None:
        return None
    total = needed.expected * (_gpus(spec) if where.device == CPU else 1)
    return Advice(change, needed.expected, total <= where.usable)


def _knobs(spec: TrainSpec) -> Iterator[list[dict[str, Any]]]:
    """Yield, for each knob that can be turned, its steps from the first to the last."""
    training, resources = spec.training, spec.resources
    micro = training.micro_batch_size
    smaller = [size for size in range(micro - 1, 0, -1) if micro % size == 0]
    if smaller:
        yield [{"training.micro_batch_size": size} for size in smaller]
    if not training.gradient_checkpointing:
        yield [{"training.gradient_checkpointing": True}]
    lengths: list[dict[str, Any]] = []
    while (length := training.max_length >> (len(lengths) + 1)) >= SHORTEST:
        lengths.append({"training.max_length": length})
    if lengths:
        yield lengths
    if resources.gpus > 1 and (resources.zero_stage or 0) < 2:
        yield [{"resources.zero_stage": 2}]
    if spec.peft.method == "full":
        yield [{"peft.method": "lora"}]


def _gpus(spec: TrainSpec) -> int:
    return spec.resources.gpus
