"""How much memory a run takes on each of its devices, term by term. Pure arithmetic, in bytes."""

from dataclasses import asdict, dataclass

from app.estimates.shapes import Shape, perturbed, trainable
from app.jobs.spec import TrainSpec

FP32 = 4
MIB, GIB = 1 << 20, 1 << 30
CPU = "cpu"
BUCKET = 1 << 24  # numbers; DeepSpeed allocates two whole ones
TILE = (4096, 8192)  # tokens, words: of a causal model's logits so much is there at once
LIBRARIES = {True: 600 * MIB, False: 64 * MIB}  # resident on a CPU; on a GPU workspaces alone


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step, on one device."""

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

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def modelled(shape: Shape, spec: TrainSpec, *, device: str, length: int) -> Memory:
    """Return what a run takes whose longest row has so many tokens."""
    numbers = trainable(shape, spec)
    return Memory(
        weights=shape.parameters * _stored(spec, device),
        trained=0 if spec.peft.method == "full" else numbers * FP32,
        gradients=_gradients(spec, numbers),
        optimizer=_optimizer(spec, numbers, device),
        perturbation=_perturbation(shape, spec),
        reference=_reference(spec, numbers),
        rollouts=_rollouts(shape, spec, device=device, length=length),
        activations=_activations(shape, spec, device=device, length=length),
        logits=_logits(shape, spec, length=length),
        libraries=LIBRARIES[device == CPU],
    )


def width(spec: TrainSpec, device: str) -> int:
    """Return the bytes of a number in the forward pass: "auto" is bf16 on a GPU, fp32 on a CPU."""
    asked = spec.training.precision
    narrow = asked == "bf16" or (asked == "auto" and device != CPU)
    return 2 if narrow else FP32


def _stored(spec: TrainSpec, device: str) -> int:
    """Weights that are trained whole are kept in fp32."""
    whole = spec.peft.method == "full" or spec.task == "classification"
    return FP32 if whole else width(spec, device)


def _gradients(spec: TrainSpec, numbers: int) -> int:
    """One of each number; shared out from stage 2 on. Buckets to send them lie beside."""
    resources = spec.resources
    if resources.sharded:
        share = resources.gpus if resources.zero_stage == 2 else 1
        return numbers * FP32 // share + 2 * BUCKET * FP32
    return numbers * FP32 * (2 if resources.gpus > 1 else 1)


def _optimizer(spec: TrainSpec, numbers: int, device: str) -> int:
    """AdamW keeps two moments; DeepSpeed also what it steps, and shares all out from stage 1 on."""
    resources = spec.resources
    if not resources.sharded:
        return 2 * numbers * FP32
    if resources.offload == "optimizer" and device != CPU:
        return 0
    share = resources.gpus if resources.zero_stage in (1, 2) else 1
    return 3 * numbers * FP32 // share


def _perturbation(shape: Shape, spec: TrainSpec) -> int:
    """MGPO keeps a copy, and another where it has a momentum of its own; noise a matrix or two."""
    asked = spec.perturbation
    if asked.type == "mgpo":
        return perturbed(shape, spec) * FP32 * (1 if asked.mu is None else 2)
    if asked.type in ("random", "ggpo"):
        return 2 * shape.largest_linear * FP32
    return 0


def _reference(spec: TrainSpec, numbers: int) -> int:
    """A policy keeps what it started from, of all that is trained; pairs know theirs by numbers."""
    policy = spec.reinforcement
    return numbers * FP32 if policy is not None and policy.kl else 0


def _rollouts(shape: Shape, spec: TrainSpec, *, device: str, length: int) -> int:
    """The keys and values of all that a policy writes at once."""
    if spec.reinforcement is None:
        return 0
    cached = sum(
        out for name, (out, _) in shape.linears.items() if name.endswith(("k_proj", "v_proj"))
    )
    numbers = cached or 2 * shape.layers * shape.hidden
    rollouts = spec.training.batch_size // spec.resources.gpus * spec.rollouts
    return rollouts * length * numbers * width(spec, device)


def _activations(shape: Shape, spec: TrainSpec, *, device: str, length: int) -> int:
    """What the backward pass needs of the forward: the inputs and outputs of linear layers.

    With gradient checkpointing the inputs of the layers, and of one layer all.
    """
    training = spec.training
    tokens = _tokens_at_once(spec, length)
    between = sum(out + into for out, into in shape.linears.values())
    inputs = shape.layers * shape.hidden
    scores = _scores_kept(shape, device) * shape.layers * shape.heads * length
    numbers = tokens * (between + inputs + scores)
    if training.gradient_checkpointing:
        numbers = tokens * inputs + numbers // shape.layers
    return numbers * width(spec, device)


def _tokens_at_once(spec: TrainSpec, length: int) -> int:
    return spec.conversations * spec.training.micro_batch_size * length


def _scores_kept(shape: Shape, device: str) -> int:
    """Return how many numbers attention keeps for each pair of tokens, in each of its heads.

    T5 adds a bias and so computes scores, probabilities and their sum by itself; elsewhere fused
    kernels keep none, of which a CPU has none for batches that are padded.
    """
    if shape.whole_attention:
        return 3
    return 1 if device == CPU else 0


def _logits(shape: Shape, spec: TrainSpec, *, length: int) -> int:
    """A causal model's come in tiles; an encoder-decoder's stand whole, with their gradient."""
    tokens = _tokens_at_once(spec, length)
    if spec.task == "classification":
        return 0
    if spec.task == "causal":
        return 2 * min(tokens, TILE[0]) * min(shape.vocabulary, TILE[1]) * FP32
    return 2 * tokens * shape.vocabulary * FP32
