"""Whether the system killed a run for memory, and what its owner can do about that."""

from pathlib import Path

import psutil

from app.jobs.spec import StepDone, TrainSpec

VMSTAT = Path("/proc/vmstat")
LIMIT = Path("/sys/fs/cgroup/memory.max")
SCORE = Path("/proc/self/oom_score_adj")
FIRST_TO_GO = "800"  # of 1000
GIB = 1 << 30


def oom_kills() -> int:
    """Return how many processes the kernel has killed for memory; 0 where it does not say."""
    try:
        fields = dict(line.split() for line in VMSTAT.read_text().splitlines())
    except OSError:
        return 0
    return int(fields.get("oom_kill", 0))


def total_bytes() -> int:
    """Return the memory that a run can have: the machine's, or the container's limit."""
    total = int(psutil.virtual_memory().total)
    try:
        limit = LIMIT.read_text().strip()
    except OSError:
        return total
    return total if limit == "max" else min(total, int(limit))


def set_score(score: str) -> str | None:
    """Say how soon the system is to end this process when memory is short, −1000 to 1000.

    Returns what it was before; None where a sandbox forbids it.
    """
    try:
        before = SCORE.read_text()
        SCORE.write_text(score)
    except OSError:
        return None
    return before


def killed(spec: TrainSpec, last: StepDone | None) -> str:
    """Tell the owner of a run that the system killed it for memory."""
    used = ""
    if last is not None:
        used = f" It used {last.metrics['memory_bytes'] / GIB:.1f} GiB at step {last.step}."
    return (
        f"The worker ran out of memory, and the system killed the run.{used} The machine has"
        f" {total_bytes() / GIB:.1f} GiB. {advice(spec)}"
    )


def advice(spec: TrainSpec) -> str:
    """Return which knobs of a job make it need less memory, with what they are now."""
    training, resources = spec.training, spec.resources
    knobs = []
    if spec.reinforcement is not None:  # they are sampled all at once
        group = f"lower method.reinforcement.group_size (now {spec.reinforcement.group_size})"
        knobs.append(f"{group}, or hyperparameters.batch_size (now {training.batch_size})")
    if training.micro_batch_size > 1:
        knobs.append(f"lower training.micro_batch_size (now {training.micro_batch_size})")
    knobs.append(f"lower training.max_length (now {training.max_length})")
    if not training.gradient_checkpointing:
        knobs.append("set training.gradient_checkpointing")
    if spec.peft.method == "full":
        knobs.append("train an adapter instead of the full model")
    if resources.gpus > 1 and (resources.zero_stage or 0) < 2:
        knobs.append("set resources.zero_stage to 2")
    first, *others = knobs
    return f"{first[0].upper()}{first[1:]}{''.join(', or ' + knob for knob in others)}."
