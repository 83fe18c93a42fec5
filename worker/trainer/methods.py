"""The PEFT methods: how each attaches to a base, is optimized, and leaves its artifact."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from app.jobs.spec import PeftSpec
from worker.optim import lora_pro
from worker.optim.groups import linear_modules, lora_modules
from worker.optim.lora_ga import gradient_factors
from worker.trainer import rebased
from worker.trainer.faults import RunError
from worker.trainer.fused import fuse

ADALORA_INITIAL = 1.5  # times the rank that is left in the end, as in its paper
ADALORA_SETTLED = 0.25  # share of the steps after the last pruning
ADALORA_WARM = 0.1
ADALORA_PRUNINGS = 50  # at most, over the run
TRAINABLE, STATE = "trainable.safetensors", "method.safetensors"

Batches = Callable[[], Iterable[Mapping[str, Tensor]]]
Loss = Callable[[Any, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Attached:
    """A model ready to train; `initial` are the factors that were taken out of the base, if any."""

    model: Any
    spec: PeftSpec
    initial: Mapping[str, Tensor] = field(default_factory=dict)

    def modules(self) -> dict[str, list[torch.nn.Parameter]]:
        """Return the parameters that are perturbed together, by module."""
        if self.spec.method == "full":
            return linear_modules(self.model)
        return lora_modules(self.model.named_parameters())

    def optimizer(self, kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> Any:
        """Return the method's own optimizer, or None for the Trainer's."""
        if self.spec.method != "lora_plus":
            return None
        assert self.spec.lr_ratio is not None
        options = dict(options)
        optimizer = create_loraplus_optimizer(
            self.model,
            kind,
            lr=options.pop("lr"),
            loraplus_lr_ratio=self.spec.lr_ratio,
            loraplus_weight_decay=options.pop("weight_decay", 0.0),
            **options,
        )
        # DeepSpeed drops empty groups by itself, and then its groups are not ours any more.
        optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the method see the gradients before each step of the optimizer."""
        if self.spec.method == "lora_pro":
            layers = [layer for _, layer in rebased.lora_layers(self.model)]
            pairs = [
                (layer.lora_A[rebased.ADAPTER].weight, layer.lora_B[rebased.ADAPTER].weight)
                for layer in layers
            ]
            scales = [float(layer.scaling[rebased.ADAPTER]) for layer in layers]
            lora_pro.follow(optimizer, pairs, scales)

    def penalty(self) -> Tensor | None:
        """Return AdaLoRA's pull towards orthogonal directions, which TRL's loss leaves out."""
        if self.spec.method != "adalora":
            return None
        weight: float = self.model.peft_config[rebased.ADAPTER].orth_reg_weight
        terms = [
            _orthogonality(parameter if ".lora_A." in name else parameter.T)
            for name, parameter in self.model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        ]
        return weight * torch.stack(terms).mean()

    def callbacks(self) -> list[TrainerCallback]:
        return [AdaLoraBudget(self.model)] if self.spec.method == "adalora" else []

    def save(self, folder: Path) -> None:
        """Write the artifact: it works on the original base."""
        if self.spec.method == "adalora":
            _save_pruned(self.model, folder)
        else:
            self.model.save_pretrained(folder)
        if self.initial:
            rebased.convert(folder, self.initial)

    def save_state(self, folder: Path) -> None:
        """Write what a resumed run needs: the trained weights as they are, and the method's own."""
        self.save_trainable(folder)
        state = dict(self.initial)
        if self.spec.method == "adalora":
            state |= _adalora_state(self.model)
        if state:
            save_file(state, folder / STATE)

    def load_state(self, folder: Path) -> None:
        """Go on from there."""
        self.load_trainable(folder)
        if self.spec.method == "adalora":
            _load_adalora_state(self.model, load_file(folder / STATE))

    def save_trainable(self, folder: Path) -> None:
        """Write the trained weights as they are."""
        save_file(trainable(self.model), folder / TRAINABLE)

    def load_trainable(self, folder: Path) -> None:
        """Put the trained weights back, bit for bit."""
        saved = load_file(folder / TRAINABLE)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(saved[name])


class AdaLoraBudget(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Moves AdaLoRA's rank budget after each step, while the gradients are still there."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def on_optimizer_step(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self._model.base_model.update_and_allocate(state.global_step + 1)


def own_loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the loss that the model computes by itself."""
    loss: Tensor = model(**batch).loss
    return loss


def attach(
    model: Any,
    spec: PeftSpec,
    *,
    task_type: str,
    total_steps: int,
    seed: int,
    batches: Batches,
    loss: Loss = own_loss,
    fresh: Sequence[str] = (),
    checkpoint: Path | None = None,
    source: Path | None = None,
) -> Attached:
    """Return the model with what is trained; factors are fp32 whatever the base is.

    Args:
        batches: a few batches for LoRA-GA's gradient, which is that of `loss`.
        fresh: modules that start at random: they are trained whole, and the adapter carries them.
        checkpoint: where the run resumes; its factors replace a second initialisation.
        source: folder of an adapter to go on from.

    Raises:
        RunError: the base has no such modules, or too small ones.
    """
    if spec.method == "full":
        return Attached(model.requires_grad_(requires_grad=True), spec)
    try:
        if source is not None:
            adapted = _reloaded(model, source)
        else:
            adapted = get_peft_model(model, _config(spec, task_type, total_steps, fresh))
    except ValueError as error:
        raise RunError("invalid_peft", str(error), param="peft.target_modules") from error
    fuse(adapted)
    if source is not None:
        return Attached(adapted, spec)
    try:
        return Attached(adapted, spec, _start(adapted, spec, batches, loss, checkpoint, seed))
    except ValueError as error:
        raise RunError("invalid_peft", str(error), param="peft.r") from error


def _reloaded(model: Any, source: Path) -> Any:
    adapted = PeftModel.from_pretrained(model, str(source), is_trainable=True)
    # PEFT would look on the hub for the name that the card shows.
    adapted.peft_config[rebased.ADAPTER].base_model_name_or_path = model.name_or_path
    return adapted


def _config(spec: PeftSpec, task_type: str, total_steps: int, fresh: Sequence[str]) -> LoraConfig:
    targets = spec.target_modules
    shared: dict[str, Any] = {
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "target_modules": targets if targets == "all-linear" else list(targets),
        "task_type": task_type,
        "modules_to_save": _outermost(fresh) or None,
    }
    if spec.method == "adalora":
        return AdaLoraConfig(
            init_r=math.ceil(ADALORA_INITIAL * spec.r),
            target_r=spec.r,
            total_step=total_steps,
            tinit=int(ADALORA_WARM * total_steps),
            tfinal=int(ADALORA_SETTLED * total_steps),
            deltaT=max(1, total_steps // ADALORA_PRUNINGS),
            **shared,
        )
    return LoraConfig(
        r=spec.r,
        use_rslora=spec.method == "rslora",
        use_dora=spec.method == "dora",
        init_lora_weights=True,
        **shared,
    )


def _outermost(modules: Sequence[str]) -> list[str]:
    """Leave out what PEFT trains whole by itself (a classifier) and what lies inside another."""
    heads = ("classifier", "score")
    own = [name for name in modules if not any(part in heads for part in name.split("."))]
    return [name for name in own if not any(name.startswith(f"{other}.") for other in own)]


def _start(
    adapted: Any,
    spec: PeftSpec,
    batches: Batches,
    loss: Loss,
    checkpoint: Path | None,
    seed: int,
) -> Mapping[str, Tensor]:
    """Give PiSSA and LoRA-GA their first factors, and take those out of the base."""
    if spec.method not in ("pissa", "lora_ga"):
        return {}
    if checkpoint is not None:
        initial: dict[str, Tensor] = load_file(checkpoint / STATE)
    elif spec.method == "pissa":
        initial = _principal_factors(adapted, spec, seed)
    else:
        initial = _gradient_factors(adapted, spec, batches, loss, seed)
    rebased.rebase(adapted, initial)
    return initial


def _principal_factors(adapted: Any, spec: PeftSpec, seed: int) -> rebased.Factors:
    """PiSSA: the principal singular directions of each weight, by PEFT's fast decomposition."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, layer in rebased.lora_layers(adapted):
            if spec.r > min(layer.get_base_layer().weight.shape):
                raise ValueError(f"{name} has fewer than {spec.r} directions; lower peft.r.")
            weight = layer.get_base_layer().weight.data
            layer.pissa_init(rebased.ADAPTER, "pissa_niter_16")
            # Taken out of the base by `rebase`, as it is when the run resumes.
            layer.get_base_layer().weight.data = weight
    return rebased.initial_factors(adapted)


def _gradient_factors(
    adapted: Any, spec: PeftSpec, batches: Batches, loss: Loss, seed: int
) -> rebased.Factors:
    """LoRA-GA: factors along the full gradient over a few batches, module by module."""
    layers = dict(rebased.lora_layers(adapted))
    gradients = _base_gradients(adapted, layers, batches, loss)
    initial: rebased.Factors = {}
    for name, layer in layers.items():
        gradient = gradients.pop(name)
        gradient = gradient.T if layer.fan_in_fan_out else gradient
        A, B = gradient_factors(gradient, r=spec.r, seed=seed)
        initial |= {f"{name}.lora_A": A, f"{name}.lora_B": B}
    return initial


def _base_gradients(
    adapted: Any, layers: Mapping[str, Any], batches: Batches, loss: Loss
) -> dict[str, Tensor]:
    """Sum the gradients of the adapted weights on the CPU; on the device one lives at a time."""
    sums: dict[str, Tensor] = {}
    weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
    adapted.eval()
    with _only(adapted, weights.values()):
        hooks = [
            weight.register_post_accumulate_grad_hook(_adder(sums, name))
            for name, weight in weights.items()
        ]
        for batch in batches():
            there = {key: value.to(adapted.device) for key, value in batch.items()}
            torch.autograd.backward(loss(adapted, there))
        for hook in hooks:
            hook.remove()
    return sums


@contextmanager
def _only(model: Any, weights: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Let gradients flow to these weights alone."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(requires_grad=False)
    for weight in weights:
        weight.requires_grad = True
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad = wanted


def _adder(sums: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    def add(weight: Tensor) -> None:
        assert weight.grad is not None
        gradient = weight.grad.float().cpu()
        sums[name] = sums[name] + gradient if name in sums else gradient
        weight.grad = None

    return add


def trainable(model: Any) -> dict[str, Tensor]:
    """Return what is trained of a model, by name: the weights themselves, no copies."""
    return {
        name: parameter.detach().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _orthogonality(P_RN: Tensor) -> Tensor:
    """‖P Pᵀ − I‖_F (AdaLoRA, eq. 4)."""
    gram_RR = P_RN @ P_RN.T
    identity_RR = torch.eye(len(gram_RR), dtype=gram_RR.dtype, device=gram_RR.device)
    distance: Tensor = torch.linalg.matrix_norm(gram_RR - identity_RR)
    return distance


def _save_pruned(model: Any, folder: Path) -> None:
    """Save without the directions whose singular value is exactly zero; the live model stays."""
    config = model.peft_config[rebased.ADAPTER]
    live = config.rank_pattern
    config.rank_pattern = {
        name.removeprefix("base_model.model."): (parameter != 0).view(-1).tolist()
        for name, parameter in model.named_parameters()
        if ".lora_E." in name
    }
    model.save_pretrained(folder)
    config.rank_pattern = live


def _adalora_state(model: Any) -> dict[str, Tensor]:
    allocator = model.base_model.rankallocator
    state = {
        f"{kind}.{name}": tensor.contiguous()
        for kind in ("ipt", "exp_avg_ipt", "exp_avg_unc")
        for name, tensor in getattr(allocator, kind).items()
    }
    for name, kept in (model.peft_config[rebased.ADAPTER].rank_pattern or {}).items():
        state[f"rank.{name}"] = torch.tensor(kept, dtype=torch.uint8)
    return state


def _load_adalora_state(model: Any, state: Mapping[str, Tensor]) -> None:
    allocator, device = model.base_model.rankallocator, model.device
    ranks = {}
    for key, tensor in state.items():
        kind, _, name = key.partition(".")
        if kind == "rank":
            ranks[name] = tensor.bool().tolist()
        else:
            getattr(allocator, kind)[name] = tensor.to(device)
    model.peft_config[rebased.ADAPTER].rank_pattern = ranks or None
