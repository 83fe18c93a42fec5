"""How many forward-backward passes a method takes, counted in batches of the whole step. Pure."""

from app.jobs.spec import GRADIENT_BATCHES, PerturbationType, TrainSpec

# Each type takes its direction from what is there already: momentum, noise, the last gradient.
PASSES_PER_STEP: dict[PerturbationType, int] = {"none": 1, "mgpo": 1, "random": 1, "ggpo": 1}


def passes(spec: TrainSpec, *, steps: int) -> int:
    """Return how many passes a run takes for its start and so many optimizer steps."""
    return start_passes(spec) + steps * PASSES_PER_STEP[spec.perturbation.type]


def steps_for(spec: TrainSpec, budget: int) -> int:
    """Return how many optimizer steps `budget` passes leave; 0 where the start takes them all."""
    return max((budget - start_passes(spec)) // PASSES_PER_STEP[spec.perturbation.type], 0)


def start_passes(spec: TrainSpec) -> int:
    """Return the passes before the first step: LoRA-GA's, over a few micro-batches."""
    if spec.peft.method != "lora_ga":
        return 0
    training = spec.training
    micro_batches = min(-(-spec.data.train_rows // training.micro_batch_size), GRADIENT_BATCHES)
    each_step = training.batch_size // (training.micro_batch_size * spec.resources.gpus)
    return -(-micro_batches // each_step)
